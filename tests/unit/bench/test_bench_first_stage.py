"""BM25: a toy corpus, the formula itself, ties."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triton_rerank_bench.first_stage import K1, B, Bm25

DOCUMENTS = ["red fox runs", "lazy dog sleeps", "red red wine barrel", "blue sky"]


def test_documents_with_more_of_the_query_come_first() -> None:
    found = Bm25(DOCUMENTS).search(["red wine", "sleeping dogs"], top_k=2)
    assert found.indexes.tolist() == [[2, 0], [1, 0]]


def test_scores_equal_the_formula() -> None:
    found = Bm25(DOCUMENTS).search(["fox"], top_k=1)
    lengths = [len(document.split()) for document in DOCUMENTS]
    idf = math.log(1 + (len(DOCUMENTS) - 1 + 0.5) / (1 + 0.5))
    expected = idf * 1 / (1 + K1 * (1 - B + B * lengths[0] / np.mean(lengths)))  # Lucene leaves the factor k1 + 1 out
    assert found.scores[0, 0] == pytest.approx(expected, rel=1e-5)


def test_words_are_stemmed_and_stop_words_ignored() -> None:
    index = Bm25(DOCUMENTS)
    plain, inflected = (index.search([query], top_k=1).scores for query in ("run fox", "the foxes and the running"))
    assert plain == pytest.approx(inflected)


def test_equal_scores_keep_the_collections_order() -> None:
    found = Bm25(["same words here", "other thing", "same words here", "same words here"]).search(["same"], top_k=4)
    assert found.indexes.tolist() == [[0, 2, 3, 1]]


@pytest.mark.parametrize("query", ["zebra", "the of and", "", "?!"])
def test_query_without_a_known_word_scores_zero_everywhere(query: str) -> None:
    found = Bm25(DOCUMENTS).search([query], top_k=3)
    assert found.indexes.tolist() == [[0, 1, 2]]
    assert not found.scores.any()


def test_top_k_beyond_the_collection_means_all() -> None:
    assert Bm25(DOCUMENTS).search(["red"], top_k=100).indexes.shape == (1, 4)
