"""Less of the same, and a context that fits its budget and can be cited."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.candidates import candidate, ids

from triton_rerank import ConfigurationError, InvalidRequestError
from triton_rerank_retrieval import (
    Candidate,
    MaximalMarginalRelevance,
    NearDuplicates,
    PerSource,
    by_embeddings,
    citations,
    pack,
    token_overlap,
)

TEXTS = st.lists(st.text("abc ", max_size=6), max_size=8)


def found(*texts: str) -> list[Candidate[Any]]:
    return [candidate(str(place), float(-place), text=text or " ") for place, text in enumerate(texts)]


def test_mmr_takes_the_unlike_before_the_alike() -> None:
    alike = found("red apple pie", "red apple pie", "blue sky")
    assert ids(MaximalMarginalRelevance(0.5).apply("q", alike).kept) == ["0", "2", "1"]
    assert ids(MaximalMarginalRelevance(1.0).apply("q", alike).kept) == ["0", "1", "2"]


def test_mmr_is_the_greedy_choice_of_its_paper() -> None:
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(12, 4))
    candidates = [candidate(str(place), score) for place, score in enumerate(sorted(rng.normal(size=12))[::-1])]
    by = {one.text: vector for one, vector in zip(candidates, vectors, strict=True)}
    similarity = by_embeddings(lambda texts: np.array([by[text] for text in texts], np.float32))
    order = ids(MaximalMarginalRelevance(0.6, similarity).apply("q", candidates).kept)
    scores = np.array([one.score for one in candidates], float)
    relevance = (scores - scores.min()) / np.ptp(scores)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    taken: list[int] = []
    while len(taken) < 12:  # by its definition, one after the other
        worth = {
            place: 0.6 * relevance[place] - 0.4 * max((unit[place] @ unit[other] for other in taken), default=0.0)
            for place in range(12)
            if place not in taken
        }
        taken.append(max(worth, key=lambda place: worth[place]))
    assert order == [str(place) for place in taken]


@given(TEXTS, st.floats(0, 1))
def test_diversity_keeps_or_leaves_out_each_candidate_once(texts: list[str], share: float) -> None:
    candidates = found(*texts)
    for step in (MaximalMarginalRelevance(share), NearDuplicates(share), PerSource(2, lambda it: it["id"] < "3")):
        outcome = step.apply("q", candidates)
        everything = ids(outcome.kept) + [one.candidate.id for one in outcome.left_out]
        assert sorted(everything) == sorted(ids(candidates))


@given(TEXTS, st.floats(0.05, 1))
def test_no_two_near_duplicates_are_kept(texts: list[str], threshold: float) -> None:
    kept = NearDuplicates(threshold).apply("q", found(*texts)).kept
    likeness = token_overlap([one.text for one in kept])
    assert not (np.triu(likeness, 1) >= threshold).any()


def test_a_near_duplicate_says_of_what() -> None:
    (left_out,) = NearDuplicates(0.9).apply("q", found("same words here", "Same words, here!")).left_out
    assert left_out.reason == "1.00 like 0"


def test_a_source_gives_no_more_than_its_cap() -> None:
    documents = [{"source": name} for name in ("a", "a", "b", "a")] + [{}]
    candidates = [candidate(str(place), document=document or {"x": 1}) for place, document in enumerate(documents)]
    outcome = PerSource(1).apply("q", candidates)
    assert ids(outcome.kept) == ["0", "2", "4"]  # without a source: not counted
    assert [one.reason for one in outcome.left_out] == ["number 2 of a", "number 3 of a"]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_out_of_bounds_are_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        MaximalMarginalRelevance(share)
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        NearDuplicates(share)
    with pytest.raises(ConfigurationError, match="at least 1"):
        PerSource(0)


def words(text: str) -> int:
    return len(text.split())


def test_what_does_not_fit_makes_way_for_the_next_and_is_told() -> None:
    context = pack(found("a b", "c " * 50, "d e"), budget=8, count_tokens=words)
    assert context.text == "[1] a b\n\n[2] d e"
    assert context.tokens == words(context.text) == 6
    assert [(one.candidate.id, one.reason) for one in context.left_out] == [("1", "51 tokens, 5 were left")]


def test_reading_order_is_that_of_the_sources_and_numbers_follow_it() -> None:
    chunks = [candidate(str(place), text=f"chunk {place}", document={"chunk": place}) for place in (2, 0, 1)]
    context = pack(chunks, budget=100, order="reading", position=lambda it: it["chunk"])
    assert ids(context.passages) == ["0", "1", "2"]
    assert context.text.startswith("[1] chunk 0")


def test_citations_lead_back_and_invented_ones_are_told() -> None:
    context = pack(found("a", "b", "c"), budget=100)
    read = citations("It is so [2], and so [1, 3]; not [7], not [0], nor f[i].", context)
    assert ids(read.cited) == ["1", "0", "2"]
    assert read.invented == (7, 0)


@given(TEXTS, st.integers(1, 30))
def test_a_context_never_exceeds_its_budget_and_loses_nothing(texts: list[str], budget: int) -> None:
    context = pack(found(*texts), budget=budget, count_tokens=words)
    assert words(context.text) <= context.tokens <= budget
    assert len(context.passages) + len(context.left_out) == len(texts)


def test_a_budget_or_an_order_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="budget is 0"):
        pack([], budget=0)
    with pytest.raises(InvalidRequestError, match="position="):
        pack([], budget=1, order="reading")
