"""What both clients do around a scorer, with the public fake in the scorer's place."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest
from support.load import BusyClock

from triton_rerank import (
    AllScorersFailedError,
    AsyncRerankClient,
    CascadeScorer,
    ConfidenceBands,
    ConfigurationError,
    DeadlineExceededError,
    FallbackScorer,
    FirstStageOrder,
    InvalidRequestError,
    OverloadedError,
    RerankClient,
    RerankError,
    RerankResult,
    Thresholds,
)
from triton_rerank.testing import FakeScorer

WORDS = ["red fox", "a red fox runs", "grey cat"]


def rerank_many(kind: str, scorer: Any, *arguments: Any, **options: Any) -> list[RerankResult[Any] | RerankError]:
    if kind == "sync":
        with RerankClient(scorer=scorer) as client:
            return client.rerank_many(*arguments, **options)

    async def ask() -> list[RerankResult[Any] | RerankError]:
        async with AsyncRerankClient(scorer=scorer) as client:
            return await client.rerank_many(*arguments, **options)

    return asyncio.run(ask())


def test_a_duplicate_is_asked_for_once() -> None:
    scorer = FakeScorer()
    with RerankClient(scorer=scorer) as client:
        result = client.rerank("red fox", [*WORDS, *WORDS])
    (request,) = scorer.requests
    assert request.documents == tuple(word.encode() for word in WORDS)
    assert [ranked.index for ranked in result] == [0, 1, 3, 4, 2, 5]


def test_documents_are_read_once_from_a_generator() -> None:
    with RerankClient(scorer=FakeScorer()) as client:
        result = client.rerank("red fox", (word for word in WORDS))
    assert [ranked.document for ranked in result] == WORDS


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_one_failing_query_does_not_lose_the_others(kind: str) -> None:
    outcomes = rerank_many(kind, FakeScorer(), ["red", " ", "cat"], [WORDS, WORDS, WORDS], top_k=1)
    assert isinstance(outcomes[0], RerankResult) and outcomes[0][0].index == 0
    assert isinstance(outcomes[1], InvalidRequestError)
    assert isinstance(outcomes[2], RerankResult) and outcomes[2][0].index == 2


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_many_queries_share_one_deadline(kind: str, busy: BusyClock) -> None:
    begin = time.monotonic()
    outcomes = rerank_many(kind, FakeScorer(delay_s=0.2), ["red"] * 20, [WORDS] * 20, timeout_s=0.5, concurrency=4)
    assert busy.own_s(begin) < 0.5 + 0.4
    answered = [isinstance(outcome, RerankResult) for outcome in outcomes]
    assert answered == sorted(answered, reverse=True)  # in the order of the queries
    assert 4 <= sum(answered) <= 8
    assert all(isinstance(outcome, RerankResult | DeadlineExceededError) for outcome in outcomes)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_more_queries_are_under_way_than_asked_for(kind: str) -> None:
    scorer = FakeScorer(delay_s=0.1)
    begin = time.monotonic()
    rerank_many(kind, scorer, ["red"] * 6, [WORDS] * 6, concurrency=2)
    assert time.monotonic() - begin >= 0.3
    assert len(scorer.requests) == 6


def test_a_bug_in_a_scorer_is_not_taken_for_an_outcome() -> None:
    with pytest.raises(ZeroDivisionError):
        rerank_many("sync", FakeScorer(error=ZeroDivisionError()), ["red"], [WORDS])


def test_scores_that_nobody_gave_are_an_error_and_a_ranking_without_them_is_not() -> None:
    chain = FallbackScorer([FakeScorer(error=OverloadedError("queue full"))])
    with RerankClient(scorer=chain) as client:
        result = client.rerank("red fox", WORDS, min_score=0.5)
        assert [(r.index, r.score, r.logit) for r in result] == [(0, None, None), (1, None, None), (2, None, None)]
        assert result.degraded and "queue full" in (result.reason or "")
        with pytest.raises(AllScorersFailedError) as error:
            client.score("red fox", WORDS)
    assert error.value.attempts[0].error == "OverloadedError"


def test_two_scales_are_ranked_and_not_scored() -> None:
    cascade = CascadeScorer(FakeScorer(name="l"), FakeScorer(lambda _, d: -len(d), name="h", model="heavy"), keep=2)
    with RerankClient(scorer=cascade) as client:
        result = client.rerank("red fox", WORDS, min_score=-100)
        assert [(r.index, r.score) for r in result] == [(0, -7.0), (1, -14.0)]  # without a score nothing is enough
        assert [r.score for r in client.rerank("red fox", WORDS)] == [-7.0, -14.0, None]
        with pytest.raises(ConfigurationError, match="two scales"):
            client.score("red fox", WORDS)


def test_a_band_needs_thresholds_for_the_model_that_answered() -> None:
    bands = ConfidenceBands({"fake": Thresholds(high=2, medium=1)})
    for model, expected in (("fake", ["high", "high", "low"]), ("other", [None] * 3)):
        with RerankClient(scorer=FakeScorer(model=model), confidence=bands) as client:
            assert [ranked.confidence for ranked in client.rerank("red fox", WORDS)] == expected


def test_a_server_that_hangs_ends_with_the_deadline(busy: BusyClock) -> None:
    with RerankClient(scorer=FakeScorer(delay_s=math.inf), timeout_s=0.2) as client:
        begin = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.rerank("red", WORDS)
        assert busy.own_s(begin) < 0.4
        assert client.is_ready(timeout_s=0.1) is False


def test_only_a_single_model_has_info() -> None:
    with RerankClient(scorer=FirstStageOrder()) as client, pytest.raises(ConfigurationError, match="no single model"):
        client.model_info()
    with RerankClient(scorer=FakeScorer()) as client:
        assert client.model_info().name == "fake"


def test_a_scorer_that_needs_an_event_loop_is_a_bug_of_the_scorer() -> None:
    class Wrong(FakeScorer):
        async def score(self, request: Any, call: Any) -> Any:
            await asyncio.sleep(0)
            return await super().score(request, call)

    with RerankClient(scorer=Wrong()) as client, pytest.raises(RuntimeError, match="needs an event loop"):
        client.rerank("red", WORDS)


def test_a_client_is_no_scorer() -> None:
    with (
        RerankClient(scorer=FirstStageOrder()) as client,
        pytest.raises(ConfigurationError, match=r"scorer= is a RerankClient, which has one: give its \.scorer"),
    ):
        RerankClient(scorer=client)  # type: ignore[arg-type]
