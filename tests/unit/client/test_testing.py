from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.load import BusyClock

from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, ModelScorer, PairRequest
from triton_rerank.errors import (
    DeadlineExceededError,
    InferenceError,
    InvalidResponseError,
    OverloadedError,
    ServerUnavailableError,
)
from triton_rerank.testing import FakeScorer, shared_words

REQUEST = PairRequest(b"a cat", (b"a dog barks", b"A cat sleeps"))
Run = Callable[..., Any]


def run_blocking(method: Callable[..., Any], *arguments: Any, timeout_s: float = 5.0) -> Any:
    return run_sync(method(*arguments, Call(Deadline(timeout_s), SyncRuntime())))


def run_awaiting(method: Callable[..., Any], *arguments: Any, timeout_s: float = 5.0) -> Any:
    async def main() -> Any:
        return await method(*arguments, Call(Deadline(timeout_s), AsyncRuntime()))

    return asyncio.run(main())


@pytest.fixture(params=[run_blocking, run_awaiting], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_it_is_a_model_scorer() -> None:
    scorer: ModelScorer = FakeScorer()
    assert isinstance(scorer, ModelScorer)


def test_it_scores_by_a_function(run: Run) -> None:
    scored = run(FakeScorer(lambda query, document: len(query) - len(document), name="f", model="m").score, REQUEST)
    assert scored.logits.dtype == np.float32
    assert scored.logits.tolist() == scored.scores.tolist() == [-6.0, -7.0]
    assert (scored.served_by, scored.model, scored.model_version, scored.degraded) == ("f", "m", "1", False)


def test_it_scores_by_a_table_and_a_text_that_it_lacks_is_a_key_error(run: Run) -> None:
    scorer = FakeScorer({"a dog barks": 0.0, "A cat sleeps": 3.0}, activation="sigmoid")
    assert run(scorer.score, REQUEST).scores.tolist() == pytest.approx([0.5, 0.9525741])
    with pytest.raises(KeyError, match="'fake' has no logit for the document 'mouse'"):
        run(scorer.score, PairRequest(b"a cat", (b"mouse",)))


def test_by_default_shared_words_are_the_logits(run: Run) -> None:
    assert shared_words("a cat", "A cat sleeps") == 2.0
    assert run(FakeScorer().score, REQUEST).logits.tolist() == [1.0, 2.0]


def test_a_word_is_a_token(run: Run) -> None:
    documents = (b"one two three", b"one")
    scored = run(FakeScorer(max_length=4).score, PairRequest(b"a cat", documents))
    assert (scored.truncated.tolist(), scored.token_count) == ([True, False], 7)
    scored = run(FakeScorer(max_length=4).score, PairRequest(b"a cat", documents, max_length=2))
    assert (scored.truncated.tolist(), scored.token_count) == ([True, True], 4)


def test_a_logit_that_is_not_finite_is_an_invalid_response_as_from_a_server(run: Run) -> None:
    with pytest.raises(InvalidResponseError, match="row 0"):
        run(FakeScorer(lambda query, document: math.nan).score, REQUEST)


def test_it_fails_while_an_error_is_set(run: Run) -> None:
    scorer = FakeScorer(error=ServerUnavailableError("gone"))
    for _ in range(2):
        with pytest.raises(ServerUnavailableError, match="gone"):
            run(scorer.score, REQUEST)
    with pytest.raises(ServerUnavailableError):
        run(scorer.model_info)
    assert run(scorer.is_ready) is False
    scorer.error = None
    assert run(scorer.score, REQUEST).served_by == "fake"
    assert run(scorer.is_ready) is True
    assert len(scorer.requests) == 3


def test_outcomes_come_one_after_the_other_and_then_error_holds(run: Run) -> None:
    scorer = FakeScorer(outcomes=[OverloadedError("full"), None], error=InferenceError("broken"))
    with pytest.raises(OverloadedError):
        run(scorer.score, REQUEST)
    run(scorer.score, REQUEST)
    with pytest.raises(InferenceError):
        run(scorer.score, REQUEST)


def test_an_error_that_is_raised_often_does_not_grow(run: Run) -> None:
    scorer = FakeScorer(error=InferenceError("broken"))
    lengths = []
    for _ in range(3):
        with pytest.raises(InferenceError) as caught:
            run(scorer.score, REQUEST)
        lengths.append(len(caught.traceback))
    assert len(set(lengths)) == 1


def test_it_waits_before_it_answers(run: Run) -> None:
    start = time.monotonic()
    run(FakeScorer(delay_s=0.05).score, REQUEST)
    assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("delay_s", [0.5, math.inf])
def test_it_never_waits_past_the_deadline(run: Run, delay_s: float, busy: BusyClock) -> None:
    scorer = FakeScorer(delay_s=delay_s)
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="'fake' did not answer within"):
        run(scorer.score, REQUEST, timeout_s=0.05)
    assert run(scorer.is_ready, timeout_s=0.05) is False
    assert busy.own_s(start) < 0.4


def test_nothing_is_answered_when_no_time_is_left(run: Run) -> None:
    clock = iter([0.0, 2.0]).__next__
    call = Call(Deadline(1.0, clock=clock), SyncRuntime())
    with pytest.raises(DeadlineExceededError):
        run_sync(FakeScorer().score(REQUEST, call))


def test_it_records_what_it_was_asked(run: Run) -> None:
    scorer = FakeScorer()
    run(scorer.score, REQUEST, timeout_s=3.0)
    assert scorer.requests == (REQUEST,)
    assert scorer.calls[0].deadline.timeout_s == 3.0


def test_it_says_what_model_it_is_and_the_version_may_change(run: Run) -> None:
    scorer = FakeScorer(model="m", activation="sigmoid")
    info = run(scorer.model_info)
    assert (info.name, info.activation, info.max_length, info.max_batch_size) == ("m", "sigmoid", 512, 64)
    scorer.model_version = "2"
    assert run(scorer.model_info).version == "2"
    assert run(scorer.score, REQUEST).model_version == "2"


def test_closing_is_noted() -> None:
    first, second = FakeScorer(), FakeScorer()
    first.close()
    asyncio.run(second.aclose())
    assert first.closed
    assert second.closed
