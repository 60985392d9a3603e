"""Many requests at once: shared pairs are scored once, and each request gets its own result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_rerank import CachedScorer, InvalidRequestError, RerankClient, RerankResult
from triton_rerank.testing import FakeScorer
from triton_rerank_retrieval import Request, RerankService

WORDS = st.lists(st.sampled_from(["a", "a b", "a b c", "d", ""]), max_size=5)


@given(st.lists(st.tuples(st.sampled_from(["a b", "c", "d"]), WORDS, st.sampled_from([None, 1, 3])), max_size=6))
def test_each_result_is_what_the_request_alone_would_get(asked: list[tuple[str, list[str], int | None]]) -> None:
    requests = [Request(str(place), *one) for place, one in enumerate(asked)]
    with RerankClient(scorer=FakeScorer()) as client:
        results = RerankService(client).rerank(requests)
        assert list(results) == [request.id for request in requests]
        for request in requests:
            alone = client.rerank(request.query, request.documents, top_k=request.top_k)
            result = results[request.id]
            assert isinstance(result, RerankResult)
            assert result.documents == alone.documents


def test_a_pair_that_several_ask_for_is_scored_once_and_again_from_the_cache() -> None:
    scorer = FakeScorer()
    with RerankClient(scorer=CachedScorer(scorer)) as client:
        service = RerankService(client)
        service.rerank([Request("1", "q", ["a", "b"]), Request("2", "q", ["b", "c"]), Request("3", "other", ["a"])])
        assert sorted(scored.documents for scored in scorer.requests) == [(b"a",), (b"a", b"b", b"c")]
        again = service.rerank([Request("x", "q", ["c", "a"])])
    assert len(scorer.requests) == 2
    assert isinstance(again["x"], RerankResult)


def test_a_query_that_fails_is_told_to_its_requests_alone() -> None:
    with RerankClient(scorer=FakeScorer()) as client:
        results = RerankService(client).rerank([Request("good", "q", ["a"]), Request("bad", " ", ["a"])])
    assert isinstance(results["good"], RerankResult)
    assert isinstance(results["bad"], InvalidRequestError)


def test_request_ids_that_stand_twice_are_refused() -> None:
    with RerankClient(scorer=FakeScorer()) as client, pytest.raises(InvalidRequestError, match="'1' stands twice"):
        RerankService(client).rerank([Request("1", "q", []), Request("1", "p", [])])
