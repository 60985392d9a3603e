from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_rerank.cascade import CascadeScorer
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.ranking import rank
from triton_rerank.core.runtime import AsyncRuntime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, PairRequest, Scored, Scorer
from triton_rerank.errors import ConfigurationError, InferenceError, OverloadedError
from triton_rerank.fallback.chain import FallbackScorer, FirstStageOrder
from triton_rerank.testing import FakeScorer
from triton_rerank.types import RankedDocument, StageScore

Score = Callable[[Scorer, PairRequest], Scored]


def score_sync(scorer: Scorer, request: PairRequest) -> Scored:
    return run_sync(scorer.score(request, Call(Deadline(5.0), SyncRuntime())))


def score_async(scorer: Scorer, request: PairRequest) -> Scored:
    return asyncio.run(scorer.score(request, Call(Deadline(5.0), AsyncRuntime())))


both = pytest.mark.parametrize("score", [score_sync, score_async])


class ScoresOnly(FakeScorer):
    """A hosted model: tells no logits."""

    async def score(self, request: PairRequest, call: Call) -> Scored:
        return replace(await super().score(request, call), logits=None)


def request_of(n: int) -> PairRequest:
    return PairRequest(b"q", tuple(b"%d" % i for i in range(n)))


def model(name: str, logits: Sequence[float], kind: type[FakeScorer] = FakeScorer, **options: Any) -> FakeScorer:
    return kind({str(i): logit for i, logit in enumerate(logits)}, name=name, model=name, **options)


def ranked(scored: Scored, n: int) -> tuple[RankedDocument[int], ...]:
    return rank(range(n), range(n), scored, top_k=n, min_score=None)


def indexes(scored: Scored, n: int) -> list[int]:
    return [document.index for document in ranked(scored, n)]


LIGHT = (1.0, 5.0, 3.0, 4.0, 2.0)  # order 1 3 2 4 0
HEAVY = (9.0, -7.0, -5.0, -6.0, 8.0)


@both
def test_heavy_orders_the_best_of_light_and_light_the_rest(score: Score) -> None:
    light, heavy = model("light", LIGHT), model("heavy", HEAVY, model_version="7")
    scored = score(CascadeScorer(light, heavy, keep=3), request_of(5))
    assert indexes(scored, 5) == [2, 3, 1, 4, 0]
    assert heavy.requests[0].documents == (b"1", b"2", b"3")
    assert (scored.model, scored.model_version, scored.served_by) == ("heavy", "7", "cascade")
    assert (scored.degraded, scored.reason) == (False, None)
    assert scored.tiers is not None
    assert scored.tiers.tolist() == [1, 0, 0, 0, 1]
    assert [document.score for document in ranked(scored, 5)] == [-5.0, -6.0, -7.0, None, None]
    assert [document.logit for document in ranked(scored, 5)] == [-5.0, -6.0, -7.0, None, None]


@both
def test_every_document_shows_what_each_stage_said(score: Score) -> None:
    light = model("light", LIGHT, ScoresOnly)
    scored = score(CascadeScorer(light, model("heavy", HEAVY), keep=1), request_of(5))
    best, second = ranked(scored, 5)[:2]
    assert best.stages == (StageScore("light", 5.0, None), StageScore("heavy", -7.0, -7.0))
    assert second.stages == (StageScore("light", 4.0, None),)


@both
@pytest.mark.parametrize("n", [1, 3])
def test_heavy_alone_is_asked_where_light_decides_nothing(n: int, score: Score) -> None:
    light, heavy = model("light", LIGHT), model("heavy", HEAVY)
    scored = score(CascadeScorer(light, heavy, keep=3), request_of(n))
    assert light.requests == ()
    assert indexes(scored, n) == sorted(range(n), key=lambda i: -HEAVY[i])
    assert (scored.served_by, scored.requests) == ("cascade", 1)
    assert [stage.model for stage in scored.stages] == ["heavy"]
    assert all(document.score is not None for document in ranked(scored, n))


def test_the_next_document_brings_light_in() -> None:
    light = model("light", LIGHT)
    score_sync(CascadeScorer(light, model("heavy", HEAVY), keep=3), request_of(4))
    assert len(light.requests) == 1


logit_lists = st.lists(st.sampled_from([-50.0, -1.0, -0.5, 0.0, 0.5, 1.0, 40.0, 50.0]), min_size=1, max_size=30)
kinds = st.sampled_from([FakeScorer, ScoresOnly])


@both
@given(
    light=logit_lists,
    data=st.data(),
    keep=st.integers(1, 12),
    light_kind=kinds,
    heavy_kind=kinds,
    sigmoid=st.booleans(),
)
def test_the_order_never_mixes_two_scales(
    score: Score,
    light: list[float],
    data: st.DataObject,
    keep: int,
    light_kind: type[FakeScorer],
    heavy_kind: type[FakeScorer],
    sigmoid: bool,
) -> None:
    n = len(light)
    heavy = data.draw(st.lists(st.sampled_from([-60.0, -2.0, 0.0, 2.0, 60.0]), min_size=n, max_size=n))
    activation = "sigmoid" if sigmoid else "identity"
    first = model("light", light, light_kind, activation=activation)
    second = model("heavy", heavy, heavy_kind)
    scored = score(CascadeScorer(first, second, keep=keep), request_of(n))

    says = 1 / (1 + np.exp(-np.array(light))) if sigmoid and light_kind is ScoresOnly else light  # 1.0 from 37 up
    by_light = sorted(range(n), key=lambda i: -says[i])
    head = sorted(sorted(by_light[:keep]), key=lambda i: -heavy[i])
    tail = by_light[keep:]
    result = ranked(scored, n)
    assert [document.index for document in result] == head + tail
    assert [document.score for document in result] == [heavy[i] for i in head] + [None] * len(tail)
    asked_light = ["light"] if n > keep else []
    assert [[stage.model for stage in document.stages] for document in result] == [
        *([[*asked_light, "heavy"]] * len(head)),
        *([["light"]] * len(tail)),
    ]
    for array in (scored.logits, scored.scores):
        assert array is None or np.isfinite(array).all()


def test_ties_behind_keep_the_callers_order_even_where_it_has_a_document_twice() -> None:
    light = model("light", (9.0, 1.0, 1.0))
    scored = score_sync(CascadeScorer(light, model("heavy", (0.0,) * 3), keep=1), request_of(3))
    result = rank("abcb", [0, 1, 2, 1], scored, top_k=4, min_score=None)  # b stands at 1 and 3
    assert [document.index for document in result] == [0, 1, 2, 3]


@both
def test_light_that_fell_open_leaves_the_choice_to_the_caller(score: Score) -> None:
    light = FallbackScorer([model("light", LIGHT, error=OverloadedError("queue full"))])
    scored = score(CascadeScorer(light, model("heavy", HEAVY), keep=2), request_of(5))
    assert indexes(scored, 5) == [0, 1, 2, 3, 4]
    assert [document.score for document in ranked(scored, 5)] == [9.0, -7.0, None, None, None]
    assert scored.degraded
    assert scored.reason is not None
    assert scored.reason.startswith("light stage: ")
    assert scored.model == "heavy"
    assert [stage.model for stage in scored.stages] == ["heavy"]
    assert [(attempt.scorer, attempt.error) for attempt in scored.attempts] == [("light", "OverloadedError")]


@both
def test_heavy_that_fell_open_leaves_lights_order(score: Score) -> None:
    heavy = FallbackScorer([model("heavy", HEAVY, error=OverloadedError("queue full"))])
    scored = score(CascadeScorer(model("light", LIGHT), heavy, keep=2), request_of(5))
    assert indexes(scored, 5) == [1, 3, 2, 4, 0]
    assert [document.score for document in ranked(scored, 5)] == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert (scored.model, scored.served_by, scored.tiers, scored.degraded) == ("light", "cascade", None, True)
    assert scored.reason is not None
    assert scored.reason.startswith("heavy stage: ")
    assert [attempt.scorer for attempt in scored.attempts] == ["heavy"]


def test_heavy_that_gives_no_scores_degrades_the_result_whether_it_says_so_or_not() -> None:
    class Quiet(FirstStageOrder):
        async def score(self, request: PairRequest, call: Call) -> Scored:
            return replace(await super().score(request, call), degraded=False, reason=None)

    scored = score_sync(CascadeScorer(model("light", LIGHT), Quiet(), keep=2), request_of(5))
    assert (scored.degraded, scored.reason) == (True, "heavy stage: no model answered")


@both
def test_two_stages_that_fell_open_leave_the_callers_order(score: Score) -> None:
    scored = score(CascadeScorer(FirstStageOrder(), FirstStageOrder(), keep=2), request_of(5))
    assert indexes(scored, 5) == [0, 1, 2, 3, 4]
    assert (scored.scores, scored.logits, scored.stages, scored.degraded) == (None, None, (), True)
    assert scored.reason is not None
    assert "light stage: " in scored.reason
    assert "; heavy stage: " in scored.reason


@both
def test_a_stage_that_fell_back_makes_the_result_degraded(score: Score) -> None:
    spare = FallbackScorer([model("heavy", HEAVY, error=InferenceError("bad")), model("spare", HEAVY)])
    scored = score(CascadeScorer(model("light", LIGHT), spare, keep=3), request_of(5))
    assert indexes(scored, 5) == [2, 3, 1, 4, 0]
    assert (scored.model, scored.degraded) == ("spare", True)
    assert [stage.model for stage in scored.stages] == ["light", "spare"]


@both
@pytest.mark.parametrize("failing", ["light", "heavy"])
def test_the_error_of_a_stage_is_the_error_of_the_call(failing: str, score: Score) -> None:
    errors = {"light": None, "heavy": None, failing: OverloadedError("queue full")}
    cascade = CascadeScorer(
        model("light", LIGHT, error=errors["light"]), model("heavy", HEAVY, error=errors["heavy"]), keep=2
    )
    with pytest.raises(OverloadedError, match="queue full"):
        score(cascade, request_of(5))


@both
def test_costs_are_added_up_and_truncation_is_heavys_where_it_scored(score: Score) -> None:
    texts = (b"one", b"one two three", b"one two three four")
    light = FakeScorer(lambda _, text: float(len(text)), max_length=3)
    heavy = FakeScorer(lambda _, text: 0.0, max_length=4)
    scored = score(CascadeScorer(light, heavy, keep=2), PairRequest(b"q", texts, None))
    assert scored.truncated.tolist() == [False, False, True]  # light cut the second too, heavy did not
    assert (scored.token_count, scored.requests) == (2 + 3 + 3 + 4 + 4, 2)
    assert scored.token_counts is not None and scored.token_counts.tolist() == [2, 4, 4]  # heavy's where it scored


def test_cached_pairs_are_added_up() -> None:
    class Cached(FakeScorer):
        async def score(self, request: PairRequest, call: Call) -> Scored:
            return replace(await super().score(request, call), cached_pairs=len(request.documents))

    cascade = CascadeScorer(model("light", LIGHT, Cached), model("heavy", HEAVY, Cached), keep=2)
    assert score_sync(cascade, request_of(5)).cached_pairs == 7


def test_both_stages_get_the_calls_own_deadline_headers_and_max_length() -> None:
    light, heavy = model("light", LIGHT), model("heavy", HEAVY)
    call = Call(Deadline(5.0), SyncRuntime(), {"tenant": "a"})
    run_sync(CascadeScorer(light, heavy, keep=2).score(replace(request_of(5), max_length=64), call))
    assert light.calls == heavy.calls == (call,)
    assert light.requests[0].max_length == heavy.requests[0].max_length == 64


@both
def test_three_stages(score: Score) -> None:
    n = 8
    first, second, third = range(n), range(0, -n, -1), (0, 0, 0, 0, 5, 7, 6, 0)
    lower = CascadeScorer(model("first", first), model("second", second), keep=5)
    left = score(CascadeScorer(lower, model("third", third), keep=3), request_of(n))
    # first: 7 6 5 4 3 | 2 1 0, second among the five: 3 4 5 | 6 7, third among the three: 5 4 3
    assert indexes(left, n) == [5, 4, 3, 6, 7, 2, 1, 0]
    assert [stage.model for stage in left.stages] == ["first", "second", "third"]
    assert [len(document.stages) for document in ranked(left, n)] == [3, 3, 3, 2, 2, 1, 1, 1]

    upper = CascadeScorer(model("second", second), model("third", third), keep=3)
    right = score(CascadeScorer(model("first", first), upper, keep=5), request_of(n))
    assert indexes(right, n) == indexes(left, n)
    assert [document.score for document in ranked(right, n)] == [7.0, 5.0, 0.0, None, None, None, None, None]
    assert ranked(right, n)[0].stages == ranked(left, n)[0].stages


@pytest.mark.parametrize("light_ready", [True, False])
@pytest.mark.parametrize("heavy_ready", [True, False])
def test_ready_if_both_stages_are(light_ready: bool, heavy_ready: bool) -> None:
    stages = [
        model("m", LIGHT, error=None if ready else OverloadedError("full")) for ready in (light_ready, heavy_ready)
    ]
    ready = CascadeScorer(*stages).is_ready(Call(Deadline(1.0), SyncRuntime()))
    assert run_sync(ready) is (light_ready and heavy_ready)


class Stuck(FakeScorer):
    def close(self) -> None:
        super().close()
        raise RuntimeError("stuck")

    async def aclose(self) -> None:
        self.close()


@pytest.mark.parametrize("close", [CascadeScorer.close, lambda cascade: asyncio.run(cascade.aclose())])
def test_closing_closes_both_though_the_first_raises(close: Callable[[CascadeScorer], None]) -> None:
    light, heavy = model("light", LIGHT, Stuck), model("heavy", HEAVY)
    with pytest.raises(RuntimeError, match="stuck"):
        close(CascadeScorer(light, heavy))
    assert light.closed
    assert heavy.closed


@pytest.mark.parametrize("keep", [0, -1, 1.0, "20", True, None])
def test_keep_that_is_no_count(keep: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"keep is {keep!r}: it must be a whole number from 1"):
        CascadeScorer(FirstStageOrder(), FirstStageOrder(), keep=keep)
