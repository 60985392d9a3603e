"""Numbers of callers: every option of every class takes numpy's, refuses booleans, and tells value, type and bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from triton_rerank import (
    CachedScorer,
    CascadeScorer,
    ConfigurationError,
    FallbackScorer,
    FirstStageOrder,
    InvalidRequestError,
    LocalScorer,
    RerankClient,
    RerankError,
    Thresholds,
    TritonOptions,
    VoyageScorer,
)
from triton_rerank.core.numbers import MAX_WHOLE, described, plain, real, whole
from triton_rerank.testing import FakeScorer

HUGE = 10**5000  # Python refuses to print it


def shortly(value: object) -> str | None:
    return "huge" if isinstance(value, int) and abs(value) > 2**70 else None


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True, None, MAX_WHOLE + 1, 2**63, HUGE, -HUGE], ids=shortly)
def test_a_wrong_whole_number_is_refused_with_its_bounds(value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"keep is .*: it must be a whole number from 1 to {MAX_WHOLE}"):
        whole("keep", value, error=InvalidRequestError)


def test_a_whole_number_has_a_least_and_a_highest_value() -> None:
    assert (whole("keep", 2, least=2), whole("keep", np.uint16(3), most=3)) == (2, 3)
    with pytest.raises(ConfigurationError, match="keep is 1: it must be a whole number from 2 to 5"):
        whole("keep", 1, least=2, most=5)


def test_the_least_value_of_a_real_number_is_right_unless_it_must_be_above() -> None:
    assert real("s", 0, least=0, must="0 or more") == 0.0
    with pytest.raises(ConfigurationError, match="s is 0: it must be above 0"):
        real("s", 0, least=0, above=True, must="above 0")


def test_a_type_is_told_where_it_is_not_seen() -> None:
    assert [described(value) for value in (3, 0.5, "3", None, True)] == ["3", "0.5", "'3'", "None", "True"]
    assert described(np.float32(3)).endswith("of type float32")


def test_numpys_numbers_become_pythons() -> None:
    values = [plain(value) for value in (np.int64(3), np.float32(0.5), 3, "x", None)]
    assert values == [3, 0.5, 3, "x", None]
    assert [type(value) for value in values[:2]] == [int, float]


def client(**options: Any) -> object:
    return RerankClient(scorer=FakeScorer(), **options)


def hosted(**options: Any) -> object:
    return VoyageScorer("key", model="m", **options)


def cascade(**options: Any) -> object:
    return CascadeScorer(FirstStageOrder(), FirstStageOrder(), **options)


def chain(**options: Any) -> object:
    return FallbackScorer([FakeScorer()], **options)


def cache(**options: Any) -> object:
    return CachedScorer(FakeScorer(), **options)


def local(**options: Any) -> object:
    return LocalScorer("model_repository", "m", **options)


def thresholds(**options: Any) -> object:
    return Thresholds(**{"high": 0.9, "medium": 0.1} | options)


OPTIONS: list[tuple[Callable[..., object], str, Any]] = [
    (client, "timeout_s", np.float32(2)),
    (hosted, "retries", np.int64(2)),
    (cascade, "keep", np.int64(2)),
    (chain, "attempt_share", np.float32(0.5)),
    (chain, "failures", np.int8(2)),
    (chain, "cool_down_s", np.float64(2)),
    (chain, "max_cool_down_s", np.float64(60)),
    (cache, "max_pairs", np.int64(10)),
    (cache, "ttl_s", np.float32(10)),
    (cache, "revalidate_s", np.int32(10)),
    (local, "threads", np.int64(1)),
    (thresholds, "high", np.float32(0.9)),
    (thresholds, "medium", np.float64(0.2)),
    (TritonOptions, "concurrency", np.int64(4)),
    (TritonOptions, "retries", np.uint8(2)),
    (TritonOptions, "keepalive_s", np.float32(10)),
    (TritonOptions, "keepalive_timeout_s", np.float32(5)),
    (TritonOptions, "max_reconnect_s", np.int64(2)),
]


@pytest.mark.parametrize(("make", "name", "number"), OPTIONS)
def test_an_option_takes_numpys_numbers_and_no_boolean(make: Callable[..., object], name: str, number: Any) -> None:
    make(**{name: number})
    for wrong in (True, np.bool_(True), "1", float("nan")):
        with pytest.raises(RerankError, match=f"{name} is .*: it must be"):
            make(**{name: wrong})


def test_a_call_takes_numpys_numbers() -> None:
    scorer = FakeScorer({"a": 1.0, "b": 2.0})
    reranker = RerankClient(scorer=scorer)
    bounds: dict[str, Any] = {"max_length": np.int64(8), "max_query_tokens": np.int64(4), "timeout_s": np.float32(5)}
    result = reranker.rerank("q", ["a", "b"], top_k=np.int64(1), min_score=np.float32(0.5), **bounds)  # type: ignore[arg-type]
    assert [ranked.document for ranked in result] == ["b"]
    assert reranker.score("q", ["a"], **bounds) == [1.0]
    (many,) = reranker.rerank_many(["q"], [["a"]], concurrency=np.int64(2), **bounds)  # type: ignore[arg-type]
    assert not isinstance(many, RerankError)
    assert {(r.max_length, r.max_query_tokens) for r in scorer.requests} == {(8, 4)}
