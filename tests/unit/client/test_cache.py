from __future__ import annotations

import asyncio
import gc
import logging
import math
import random
import sys
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.load import BusyClock

from triton_rerank.cache.memory import PairMemory
from triton_rerank.cache.scorer import CacheCounters, CachedScorer
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.ranking import activate
from triton_rerank.core.runtime import AsyncRuntime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, ModelScorer, PairRequest, Scored, Scorer
from triton_rerank.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.fallback.chain import FallbackScorer, FirstStageOrder
from triton_rerank.testing import FakeScorer
from triton_rerank.types import Activation, ModelInfo

Score = Callable[..., Scored]


def score_sync(scorer: Scorer, request: PairRequest, timeout_s: float = 5.0) -> Scored:
    return run_sync(scorer.score(request, Call(Deadline(timeout_s), SyncRuntime())))


def score_async(scorer: Scorer, request: PairRequest, timeout_s: float = 5.0) -> Scored:
    return asyncio.run(scorer.score(request, Call(Deadline(timeout_s), AsyncRuntime())))


both = pytest.mark.parametrize("score", [score_sync, score_async])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def truth(version: str, query: str, document: str) -> float:
    """Another logit for every version and pair; exact in float32."""
    return float(int(version) * 64 + int(query) * 16 + int(document)) / 8 - 20


class Server(FakeScorer):
    """A model that can be reloaded: its logits depend on its version.

    Attributes:
        events: what happens right before each of the next RPCs, for instance a reload.
        infos: how often the config was read.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("activation", "sigmoid")
        super().__init__(lambda query, document: truth(self.model_version, query, document), **options)
        self.events: deque[Callable[[], None] | None] = deque()
        self.infos = 0

    def reload(self, version: str, activation: Activation = "sigmoid") -> None:
        self.model_version, self._activation = version, activation

    async def score(self, request: PairRequest, call: Call) -> Scored:
        self._happen()
        return await super().score(request, call)

    async def model_info(self, call: Call) -> ModelInfo:
        self._happen()
        self.infos += 1
        return await super().model_info(call)

    def _happen(self) -> None:
        if self.events and (event := self.events.popleft()) is not None:
            event()

    @property
    def asked(self) -> list[str]:
        """Documents of each request, "0 1 2"."""
        return [b" ".join(request.documents).decode() for request in self.requests]


class SilentServer(Server):
    """States no version in its answers: only its config tells that it changed."""

    async def score(self, request: PairRequest, call: Call) -> Scored:
        return replace(await super().score(request, call), model_version="")


def ask(*documents: int, query: int = 0, max_length: int | None = None) -> PairRequest:
    return PairRequest(b"%d" % query, tuple(b"%d" % document for document in documents), max_length)


def assert_is_of(scored: Scored, version: str, request: PairRequest) -> None:
    """Every logit, score and flag is what that version says of that pair."""
    logits = [truth(version, request.query.decode(), document.decode()) for document in request.documents]
    assert scored.logits is not None
    assert scored.scores is not None
    assert scored.logits.dtype == np.float32
    assert scored.logits.tolist() == logits
    assert scored.scores.tolist() == activate(np.array(logits, np.float32), "sigmoid").tolist()
    assert scored.truncated.tolist() == [(request.max_length or 512) < 2] * len(logits)
    assert scored.token_counts is not None
    assert scored.token_counts.tolist() == [min(2, request.max_length or 512)] * len(logits)


@both
def test_a_partial_hit_shrinks_the_request(score: Score) -> None:
    server = Server()
    cached = CachedScorer(server)
    first, part, whole = (score(cached, request) for request in (ask(0, 1, 2), ask(3, 1, 4, 0), ask(4, 2, 0)))
    assert server.asked == ["0 1 2", "3 4"]
    assert_is_of(first, "1", ask(0, 1, 2))
    assert_is_of(part, "1", ask(3, 1, 4, 0))
    assert_is_of(whole, "1", ask(4, 2, 0))
    assert [(s.cached_pairs, s.requests, s.token_count) for s in (first, part, whole)] == [
        (0, 1, 6),
        (2, 1, 4),
        (3, 0, 0),
    ]
    assert {(s.model, s.model_version, s.served_by, s.degraded) for s in (first, part, whole)} == {
        ("fake", "1", "fake", False)
    }
    assert cached.counters() == CacheCounters(hits=5, misses=5, evictions=0, drops=0, size=5, max_pairs=100_000)


def test_the_config_is_read_once_while_it_counts_as_fresh() -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, revalidate_s=5.0, clock=clock)
    for _ in range(3):
        score_sync(cached, ask(0, 1))
    clock.now += 4.9
    score_sync(cached, ask(0, 2))
    assert server.infos == 1
    clock.now += 0.1
    score_sync(cached, ask(0))
    score_sync(cached, ask(0))
    assert server.infos == 2
    clock.now += 100
    score_sync(cached, ask(7, 8))  # nothing is here: its answer states the version
    assert server.infos == 2


@pytest.mark.parametrize(
    "other",
    [
        ask(0, query=1),
        ask(0, max_length=64),
        PairRequest(b"0", (b"00",)),
        PairRequest(b"00", (b"",)),  # the same bytes, cut elsewhere
        PairRequest(b"", (b"00",)),
    ],
)
def test_what_makes_another_pair(other: PairRequest) -> None:
    server = FakeScorer(lambda query, document: 1.0)
    cached = CachedScorer(server)
    score_sync(cached, PairRequest(b"0", (b"0",)))
    assert score_sync(cached, other).cached_pairs == 0
    assert score_sync(cached, other).cached_pairs == 1


def test_where_one_part_of_a_key_ends_and_the_next_begins_counts() -> None:
    cached = CachedScorer(FakeScorer(lambda query, document: 1.0))
    score_sync(cached, PairRequest(b"40", (b"0",), max_length=6))
    assert score_sync(cached, PairRequest(b"0", (b"0",), max_length=64)).cached_pairs == 0


def test_truncation_is_remembered() -> None:
    cached = CachedScorer(Server())
    for _ in range(2):
        assert_is_of(score_sync(cached, ask(0, max_length=1)), "1", ask(0, max_length=1))


@both
def test_logits_come_back_bit_for_bit(score: Score) -> None:
    values = [0.1, 1e-30, -3.4e38, 16777217.0, -0.0, 5e-324]
    server = FakeScorer({str(i): value for i, value in enumerate(values)})
    cached = CachedScorer(server)
    fresh, again = (score(cached, ask(*range(len(values)))) for _ in range(2))
    assert again.cached_pairs == len(values)
    assert fresh.logits is not None
    assert again.logits is not None
    assert fresh.logits.tobytes() == again.logits.tobytes()


def test_what_an_answer_holds_is_the_callers_own() -> None:
    cached = CachedScorer(Server())
    for _ in range(3):
        scored = score_sync(cached, ask(0, 1))
        assert_is_of(scored, "1", ask(0, 1))
        assert scored.logits is not None
        scored.logits[:] = 0.0


# --- reloads


@both
def test_a_reload_is_seen_by_an_answer_and_empties_the_cache(score: Score) -> None:
    server = Server()
    cached = CachedScorer(server, revalidate_s=1000.0)
    score(cached, ask(0, 1, 2))
    server.reload("2")
    scored = score(cached, ask(0, 1, 3))
    assert_is_of(scored, "2", ask(0, 1, 3))
    assert server.asked == ["0 1 2", "3", "0 1 3"]
    assert (scored.model_version, scored.cached_pairs, scored.requests, scored.token_count) == ("2", 0, 2, 8)
    assert cached.counters() == CacheCounters(hits=0, misses=7, evictions=0, drops=3, size=3, max_pairs=100_000)
    assert score(cached, ask(0, 1, 3)).cached_pairs == 3
    assert score(cached, ask(2)).cached_pairs == 0


@both
@pytest.mark.parametrize("kind", [Server, SilentServer])
def test_a_reload_is_seen_before_an_answer_from_memory_alone(kind: type[Server], score: Score) -> None:
    clock, server = Clock(), kind()
    cached = CachedScorer(server, revalidate_s=5.0, clock=clock)
    score(cached, ask(0, 1))
    server.reload("2")
    clock.now += 4.9
    assert_is_of(score(cached, ask(0, 1)), "1", ask(0, 1))  # as documented
    clock.now += 0.1
    assert_is_of(score(cached, ask(0, 1)), "2", ask(0, 1))
    assert cached.counters().drops == 2


def test_every_part_of_the_config_counts() -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, revalidate_s=5.0, clock=clock)
    score_sync(cached, ask(0))
    server._max_length = 256
    clock.now += 5
    assert score_sync(cached, ask(0)).cached_pairs == 0


def test_asking_for_model_info_sees_a_reload_too() -> None:
    server = Server()
    cached = CachedScorer(server, revalidate_s=1000.0)
    score_sync(cached, ask(0))
    server.reload("2")
    info = run_sync(cached.model_info(Call(Deadline(1.0), SyncRuntime())))
    assert info.version == "2"
    assert_is_of(score_sync(cached, ask(0)), "2", ask(0))


@pytest.mark.parametrize("kind", [Server, SilentServer])
def test_a_reload_between_the_first_config_and_the_first_answer(kind: type[Server]) -> None:
    server = kind()
    cached = CachedScorer(server, revalidate_s=0.0)
    server.events.extend([None, lambda: server.reload("2")])
    assert_is_of(score_sync(cached, ask(0)), "2", ask(0))
    server.reload("3")
    assert_is_of(score_sync(cached, ask(0)), "3", ask(0))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 1), st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True)),
        st.tuples(st.just("reload"), st.integers(1, 3), st.just([])),
        st.tuples(st.just("wait"), st.integers(1, 8), st.just([])),
        st.tuples(st.just("clear"), st.just(0), st.just([])),
    ),
    max_size=25,
)


@pytest.mark.parametrize("score", [score_sync, score_async])
@pytest.mark.parametrize("kind", [Server, SilentServer])
@given(steps=steps, max_pairs=st.integers(1, 12))
def test_the_same_as_the_scorer_itself_for_any_sequence(
    score: Score, kind: type[Server], steps: list[tuple[str, int, list[int]]], max_pairs: int
) -> None:
    clock, server = Clock(), kind()
    cached = CachedScorer(server, max_pairs=max_pairs, ttl_s=10.0, revalidate_s=0.0, clock=clock)
    pairs = 0
    for step, number, documents in steps:
        if step == "reload":  # one that states no version must not come back to an earlier state unseen
            server.reload(str(number if kind is Server else int(server.model_version) + number))
        elif step == "wait":
            clock.now += number
        elif step == "clear":
            cached.clear()
        else:
            request = ask(*documents, query=number)
            scored = score(cached, request)
            assert_is_of(scored, server.model_version, request)
            pairs += scored.cached_pairs
    counters = cached.counters()
    assert counters.hits == pairs
    assert counters.size <= max_pairs


@pytest.mark.parametrize("score", [score_sync, score_async])
@given(
    requests=st.lists(
        st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True).map(lambda documents: ask(*documents)),
        min_size=1,
        max_size=12,
    ),
    reloads=st.lists(st.sampled_from([None, None, "1", "2", "3"]), max_size=30),
    revalidate_s=st.sampled_from([0.0, 1000.0]),
)
def test_no_answer_mixes_versions_wherever_a_reload_falls(
    score: Score, requests: list[PairRequest], reloads: Sequence[str | None], revalidate_s: float
) -> None:
    server = Server()
    cached = CachedScorer(server, revalidate_s=revalidate_s)
    server.events.extend(None if version is None else partial(server.reload, version) for version in reloads)
    for request in requests:
        scored = score(cached, request)
        assert_is_of(scored, scored.model_version, request)
        assert scored.cached_pairs in (0, len(request.documents)) or server.model_version == scored.model_version


class Late(SilentServer):
    """Its next answer is under way while something happens."""

    meanwhile: Callable[[], None] | None = None

    async def score(self, request: PairRequest, call: Call) -> Scored:
        scored = await super().score(request, call)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return scored


@pytest.mark.parametrize("documents", [(0, 1), (1, 2)])
def test_an_answer_that_was_under_way_during_a_reload_is_neither_merged_nor_kept(documents: tuple[int, ...]) -> None:
    server = Late()
    cached = CachedScorer(server, revalidate_s=0.0)
    score_sync(cached, ask(0))

    def reload_and_let_another_call_see_it() -> None:
        server.reload("2")
        assert_is_of(score_sync(cached, ask(0)), "2", ask(0))

    server.meanwhile = reload_and_let_another_call_see_it
    scored = score_sync(cached, ask(*documents))
    assert_is_of(scored, "2" if 0 in documents else "1", ask(*documents))
    assert_is_of(score_sync(cached, ask(0, 1, 2)), "2", ask(0, 1, 2))


def test_a_generation_that_has_ended_finds_nothing_of_the_next() -> None:
    server = SilentServer()
    call = Call(Deadline(5.0), SyncRuntime())
    memory = PairMemory(10, 60.0, time.monotonic)
    first = memory.begin(run_sync(server.model_info(call)))
    assert memory.keep(first, ask(0), score_sync(server, ask(0)))
    assert memory.find(first, ask(0)).hit.all()
    server.reload("2")
    second = memory.begin(run_sync(server.model_info(call)))
    assert memory.keep(second, ask(0), score_sync(server, ask(0)))
    assert not memory.find(first, ask(0)).hit.any()
    assert memory.find(second, ask(0)).logits.tolist() == [truth("2", "0", "0")]


@both
def test_scores_from_memory_are_made_by_the_activation_of_the_version_that_answered(score: Score) -> None:
    """The model is replaced by one with another activation between the reading of its config and its first answer."""
    server = Server()
    cached = CachedScorer(server, revalidate_s=1000.0)
    server.events.extend([None, lambda: server.reload("2", "identity")])
    for documents in ((0, 1), (0, 1), (0, 1, 2), (0, 1, 2)):
        scored = score(cached, ask(*documents))
        assert scored.scores is not None
        assert scored.scores.tolist() == [truth("2", "0", str(document)) for document in documents], documents
    assert scored.cached_pairs == 3


def test_what_is_scored_during_clear_is_not_kept() -> None:
    server = Server()
    cached = CachedScorer(server)
    server.events.extend([None, cached.clear])
    score_sync(cached, ask(0))
    assert cached.counters().size == 0
    assert score_sync(cached, ask(0)).cached_pairs == 0
    assert score_sync(cached, ask(0)).cached_pairs == 1


# --- bounds


@both
def test_a_pair_goes_after_its_time(score: Score) -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, ttl_s=60.0, revalidate_s=1000.0, clock=clock)
    score(cached, ask(0, 1))
    clock.now += 59.9
    assert score(cached, ask(0, 1, 2)).cached_pairs == 2  # being read does not make it younger
    clock.now += 0.1
    scored = score(cached, ask(0, 1, 2))
    assert_is_of(scored, "1", ask(0, 1, 2))
    assert server.asked[-1] == "0 1"
    clock.now += 60.0
    assert cached.counters().size == 0


def test_the_least_recently_used_pair_makes_room() -> None:
    server = Server()
    cached = CachedScorer(server, max_pairs=3)
    score_sync(cached, ask(0, 1, 2))
    score_sync(cached, ask(0))
    score_sync(cached, ask(3))
    assert cached.counters() == CacheCounters(hits=1, misses=4, evictions=1, drops=0, size=3, max_pairs=3)
    assert score_sync(cached, ask(0, 2, 3)).cached_pairs == 3
    score_sync(cached, ask(1))
    assert server.asked[-1] == "1"


def test_a_request_larger_than_the_cache() -> None:
    cached = CachedScorer(Server(), max_pairs=3)
    for _ in range(2):
        assert_is_of(score_sync(cached, ask(*range(10))), "1", ask(*range(10)))
    counters = cached.counters()
    assert counters.size == 3
    assert counters.evictions == counters.misses - 3


def test_a_pair_that_two_asked_for_at_once_evicts_nothing() -> None:
    server = Late()
    cached = CachedScorer(server, max_pairs=2)
    server.meanwhile = lambda: assert_is_of(score_sync(cached, ask(0, 1)), "1", ask(0, 1))
    score_sync(cached, ask(0, 1))
    assert cached.counters() == CacheCounters(hits=0, misses=4, evictions=0, drops=0, size=2, max_pairs=2)


def test_expired_pairs_are_no_evictions() -> None:
    clock = Clock()
    cached = CachedScorer(Server(), max_pairs=3, ttl_s=60.0, clock=clock)
    score_sync(cached, ask(0, 1, 2))
    clock.now += 60.0
    score_sync(cached, ask(3, 4, 5))
    assert (cached.counters().evictions, cached.counters().drops) == (0, 0)


def test_memory_of_a_pair_is_small_and_does_not_depend_on_its_texts() -> None:
    n, text = 10_000, b"x" * 2000
    scorer = FakeScorer(lambda query, document: float(document[:5]) / 7)
    cached = CachedScorer(scorer)
    score_sync(cached, ask(0))
    gc.collect()
    tracemalloc.start()
    try:
        score_sync(cached, PairRequest(b"q", tuple(b"%05d" % i + text for i in range(n))))
        scorer._asked.clear()  # what it recorded is not the cache's
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 200 * n < held < 450 * n


# --- what is not kept


class Odd(Server):
    """Answers with a change."""

    change: dict[str, Any]

    async def score(self, request: PairRequest, call: Call) -> Scored:
        scored = await super().score(request, call)
        return replace(scored, **{name: value(scored) for name, value in self.change.items()})


@pytest.mark.parametrize(
    "change",
    [
        {"degraded": lambda scored: True},
        {"logits": lambda scored: None},
        {"logits": lambda scored: np.full_like(scored.logits, np.nan)},
        {"logits": lambda scored: np.full_like(scored.logits, -np.inf)},
        {"logits": lambda scored: scored.logits[:1]},
    ],
)
def test_an_answer_that_is_not_sound_is_passed_on_and_never_kept_or_merged(change: dict[str, Any]) -> None:
    server = Odd()
    server.change = {}
    cached = CachedScorer(server)
    score_sync(cached, ask(0))
    server.change = change
    for _ in range(2):
        scored = score_sync(cached, ask(0, 1, 2))
        assert (scored.cached_pairs, scored.served_by) == (0, "fake")
    assert server.asked == ["0", "1 2", "0 1 2", "1 2", "0 1 2"]
    server.change = {}
    assert score_sync(cached, ask(0, 1, 2)).cached_pairs == 1


# --- the server is away


@both
@pytest.mark.parametrize(
    "error", [ServerUnavailableError("gone"), OverloadedError("full"), DeadlineExceededError("late")]
)
def test_pairs_that_are_here_outlive_the_server(
    error: RerankError, score: Score, caplog: pytest.LogCaptureFixture
) -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, ttl_s=60.0, revalidate_s=5.0, clock=clock)
    score(cached, ask(0, 1))
    server.error = error
    with caplog.at_level(logging.WARNING, "triton_rerank"):
        for _ in range(3):
            clock.now += 5.0
            scored = score(cached, ask(1, 0))
            assert_is_of(scored, "1", ask(1, 0))
            assert (scored.degraded, scored.cached_pairs) == (False, 2)
            with pytest.raises(type(error)):
                score(cached, ask(0, 2))
        assert [record.getMessage() for record in caplog.records] == [
            f"fake: answers cached pairs only, its model cannot be asked: {error}"
        ]
        server.error = None
        clock.now += 5.0
        score(cached, ask(0, 2))
        score(cached, ask(0, 1))
        assert [record.getMessage() for record in caplog.records][1:] == ["fake: its model can be asked again"]
        assert {record.levelname for record in caplog.records} == {"WARNING"}
    server.error = error
    clock.now += 60.0
    with pytest.raises(type(error)):
        score(cached, ask(0, 1))


@both
def test_a_server_that_comes_back_with_another_version(score: Score) -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, revalidate_s=5.0, clock=clock)
    score(cached, ask(0))
    server.error = ServerUnavailableError("gone")
    clock.now += 5.0
    assert_is_of(score(cached, ask(0)), "1", ask(0))
    server.error = None
    server.reload("2")
    clock.now += 5.0
    assert_is_of(score(cached, ask(0)), "2", ask(0))


@both
@pytest.mark.parametrize("error", [ConfigurationError("unknown model"), InvalidRequestError("refused")])
def test_a_client_that_no_longer_fits_the_server_is_told_each_time(error: RerankError, score: Score) -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, revalidate_s=5.0, clock=clock)
    score(cached, ask(0))
    server.error = error
    clock.now += 5.0
    for _ in range(2):
        with pytest.raises(type(error)):
            score(cached, ask(0))
    server.error = None
    assert score(cached, ask(0)).cached_pairs == 1


@both
def test_a_server_that_hangs_holds_up_one_hit_for_half_its_time(score: Score, busy: BusyClock) -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, revalidate_s=5.0, clock=clock)
    score(cached, ask(0))
    clock.now += 5.0
    server.delay_s = math.inf
    started = time.monotonic()
    assert score(cached, ask(0), timeout_s=1.0).cached_pairs == 1
    assert time.monotonic() - started >= 0.5 and busy.own_s(started) < 1.0
    started = time.monotonic()
    assert score(cached, ask(0), timeout_s=1.0).cached_pairs == 1
    assert busy.own_s(started) < 0.5


def test_a_check_takes_a_second_at_most_however_long_the_deadline(busy: BusyClock) -> None:
    server = Server()
    cached = CachedScorer(server, revalidate_s=0.0)
    score_sync(cached, ask(0))
    server.delay_s = math.inf
    started = time.monotonic()
    assert score_sync(cached, ask(0), timeout_s=60.0).cached_pairs == 1
    assert time.monotonic() - started >= 1.0 and busy.own_s(started) < 2.0


@both
@pytest.mark.parametrize("error", [ServerUnavailableError("gone"), ConfigurationError("unknown model")])
def test_an_empty_cache_passes_the_scorers_error_on(error: RerankError, score: Score) -> None:
    server = Server(error=error)
    with pytest.raises(type(error)):
        score(CachedScorer(server), ask(0))


def test_asking_anew_keeps_the_deadline() -> None:
    server = Server()
    cached = CachedScorer(server, revalidate_s=1000.0)
    score_sync(cached, ask(0))
    server.reload("2")
    server.events.append(lambda: time.sleep(0.2))
    with pytest.raises(DeadlineExceededError):
        score_sync(cached, ask(0, 1), timeout_s=0.1)


# --- many at once


class Yielding(Server):
    """Lets others go on between reading its version and answering."""

    async def score(self, request: PairRequest, call: Call) -> Scored:
        version = self.model_version
        await call.runtime.sleep(random.random() / 1000)
        logits = np.array([truth(version, "0", d.decode()) for d in request.documents], np.float32)
        scored = await super().score(request, call)
        return replace(scored, logits=logits, scores=activate(logits, "sigmoid"), model_version=version)


def test_threads_never_get_a_mixture() -> None:
    server = Yielding()
    cached = CachedScorer(server, max_pairs=12, revalidate_s=0.005)

    def work(number: int) -> int:
        chance, hits = random.Random(number), 0
        for _ in range(150):
            request = ask(*chance.sample(range(16), chance.randint(1, 8)))
            scored = score_sync(cached, request)
            assert_is_of(scored, scored.model_version, request)
            hits += scored.cached_pairs
            if chance.random() < 0.02:
                server.reload(str(chance.randint(1, 3)))
        return hits

    with ThreadPoolExecutor(8) as pool:
        hits = sum(pool.map(work, range(8)))
    counters = cached.counters()
    assert counters.hits == hits > 0
    assert counters.drops > 0
    assert counters.size <= 12


def test_tasks_never_get_a_mixture() -> None:
    server = Yielding()
    cached = CachedScorer(server, revalidate_s=0.005)

    async def work(number: int) -> int:
        chance, hits = random.Random(number), 0
        for _ in range(50):
            request = ask(*chance.sample(range(16), chance.randint(1, 8)))
            scored = await cached.score(request, Call(Deadline(30.0), AsyncRuntime()))
            assert_is_of(scored, scored.model_version, request)
            hits += scored.cached_pairs
            if chance.random() < 0.02:
                server.reload(str(chance.randint(1, 3)))
        return hits

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(work(number) for number in range(16)))

    assert sum(asyncio.run(all_at_once())) == cached.counters().hits > 0


def test_one_caller_checks_and_the_others_go_on() -> None:
    clock, server = Clock(), Server()
    cached = CachedScorer(server, revalidate_s=5.0, clock=clock)
    score_sync(cached, ask(0))
    clock.now += 5.0
    infos = server.infos
    server.delay_s = 0.1

    async def all_at_once() -> list[Scored]:
        return await asyncio.gather(*(cached.score(ask(0), Call(Deadline(5.0), AsyncRuntime())) for _ in range(20)))

    assert {scored.cached_pairs for scored in asyncio.run(all_at_once())} == {1}
    assert server.infos == infos + 1


# --- the rest


def test_it_is_a_scorer_of_one_model_under_the_name_of_its_scorer() -> None:
    server = Server(name="triton(a:1)")
    assert isinstance(CachedScorer(server), ModelScorer)
    assert CachedScorer(server).name == "triton(a:1)"
    named = CachedScorer(server, name="cached")
    assert named.name == "cached"
    assert [score_sync(named, ask(*documents)).served_by for documents in ([0], [0], [0, 1])] == ["cached"] * 3


@pytest.mark.parametrize("close", [CachedScorer.close, lambda cached: asyncio.run(cached.aclose())])
def test_closing_closes_the_scorer(close: Callable[[CachedScorer], None]) -> None:
    server = Server()
    close(CachedScorer(server))
    assert server.closed


def test_ready_if_the_scorer_is() -> None:
    server = Server()
    call = Call(Deadline(1.0), SyncRuntime())
    assert run_sync(CachedScorer(server).is_ready(call))
    server.error = OverloadedError("full")
    assert not run_sync(CachedScorer(server).is_ready(call))


@pytest.mark.parametrize("scorer", [FallbackScorer([Server()]), FirstStageOrder(), None])
def test_a_scorer_that_is_not_of_one_model(scorer: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"scorer is a {type(scorer).__name__}, which has no model_info"):
        CachedScorer(scorer)


@pytest.mark.parametrize(
    ("name", "values", "bound"),
    [
        ("max_pairs", (0, -1, 1.5, True, "9", None), "it must be a whole number from 1"),
        ("ttl_s", (0, -1.0, math.nan, math.inf, True, "9", None), "it must be a finite number of seconds above 0"),
        ("revalidate_s", (-1, math.nan, math.inf, False, "9"), "it must be a finite number of seconds at least 0"),
    ],
)
def test_numbers_out_of_bounds(name: str, values: tuple[Any, ...], bound: str) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=f"{name} is {value!r}: {bound}"):
            CachedScorer(Server(), **{name: value})


def test_without_cachetools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cachetools", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'triton-rerank\[cache\]'"):
        CachedScorer(Server())


# --- calls that come at once ------------------------------------------------------------------------------------------


class Slow(Server):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.failing = 0

    async def score(self, request: PairRequest, call: Call) -> Scored:
        answer = await super().score(request, call)
        while not self.gate.is_set():
            await call.runtime.sleep(0.005)
        if self.failing:
            self.failing -= 1
            raise OverloadedError("full")
        return answer


def burst(scorer: CachedScorer, requests: Sequence[PairRequest], server: Slow, is_async: bool) -> list[Any]:
    """What calls that came while the model was working got: answers or errors, in the order of the requests."""

    async def main() -> list[Any]:
        tasks = [
            asyncio.ensure_future(scorer.score(request, Call(Deadline(20.0), AsyncRuntime()))) for request in requests
        ]
        await asyncio.sleep(0.05)
        server.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def outcome(request: PairRequest) -> Any:
        try:
            return score_sync(scorer, request, 20.0)
        except RerankError as exc:
            return exc

    if is_async:
        return asyncio.run(main())
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(outcome, request) for request in requests]
        time.sleep(0.2)
        server.gate.set()
        return [future.result() for future in futures]


forms = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@forms
def test_a_burst_of_one_hot_query_asks_once(is_async: bool) -> None:
    server = Slow()
    answers = burst(CachedScorer(server), [ask(0, 1, 2)] * 16, server, is_async)
    assert server.asked == ["0 1 2"]
    for answer in answers:
        assert_is_of(answer, "1", ask(0, 1, 2))
    assert sorted(answer.cached_pairs for answer in answers) == [0] + [3] * 15
    assert sum(answer.requests for answer in answers) == 1


@forms
def test_a_part_of_what_is_being_asked_is_waited_for_and_more_is_asked_at_once(is_async: bool) -> None:
    server = Slow()
    answers = burst(CachedScorer(server), [ask(0, 1, 2), ask(1, 2), ask(2, 3)], server, is_async)
    assert sorted(server.asked) in (["0 1 2", "2 3"], ["0 1 2", "1 2", "2 3"])  # threads may begin in any order
    assert is_async is False or sorted(server.asked) == ["0 1 2", "2 3"]
    for answer, request in zip(answers, [ask(0, 1, 2), ask(1, 2), ask(2, 3)], strict=True):
        assert_is_of(answer, "1", request)


@forms
def test_the_callers_error_is_not_that_of_those_who_waited(is_async: bool) -> None:
    server = Slow()
    server.failing = 1
    outcomes = burst(CachedScorer(server), [ask(0)] * 4, server, is_async)
    assert [type(outcome).__name__ for outcome in outcomes].count("OverloadedError") == 1
    for outcome in outcomes:
        if isinstance(outcome, Scored):
            assert_is_of(outcome, "1", ask(0))


@forms
def test_waiting_ends_with_the_deadline_of_the_one_that_waits(is_async: bool) -> None:
    server = Slow()
    cached = CachedScorer(server)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(score_sync, cached, ask(0), 20.0)
        while not server.requests:
            time.sleep(0.001)
        begin = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="another call had the same pairs scored"):
            (score_async if is_async else score_sync)(cached, ask(0), 0.1)
        assert 0.1 <= time.monotonic() - begin < 5.0
        server.gate.set()
        assert_is_of(first.result(), "1", ask(0))
    assert server.asked == ["0"]


def test_a_call_that_is_cancelled_lets_those_who_waited_ask() -> None:
    server = Slow()
    cached = CachedScorer(server)

    async def main() -> Scored:
        calls = [asyncio.ensure_future(cached.score(ask(0), Call(Deadline(20.0), AsyncRuntime()))) for _ in range(2)]
        await asyncio.sleep(0.05)
        calls[0].cancel()
        server.gate.set()
        return await calls[1]

    assert_is_of(asyncio.run(main()), "1", ask(0))
    assert server.asked == ["0", "0"]


def test_a_call_that_blocks_does_not_wait_for_the_event_loop_that_it_blocks() -> None:
    server = Slow()
    cached = CachedScorer(server)

    async def main() -> None:
        task = asyncio.ensure_future(cached.score(ask(0), Call(Deadline(20.0), AsyncRuntime())))
        while not server.requests:
            await asyncio.sleep(0)
        server.gate.set()
        assert_is_of(score_sync(cached, ask(0), 5.0), "1", ask(0))
        assert_is_of(await task, "1", ask(0))

    asyncio.run(main())
    assert server.asked == ["0", "0"]


@pytest.mark.parametrize("name", ["max_length", "max_query_tokens", "max_document_tokens"])
def test_another_bound_of_the_texts_is_another_pair(name: str) -> None:
    server = Server()
    cached = CachedScorer(server)
    for most in (None, 5, None, 6):
        bounds: dict[str, Any] = {name: most}
        score_sync(cached, replace(ask(0), **bounds))
    assert server.asked == ["0", "0", "0"]


def test_another_instruction_makes_another_pair() -> None:
    server = Server()
    cached = CachedScorer(server)
    for instruction in (None, "find code", None, "find prose", "find code"):
        score_sync(cached, replace(ask(0), instruction=instruction))
    assert server.asked == ["0", "0", "0"]
