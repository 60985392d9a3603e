"""Quality: systems reorder the same candidates, and are compared query by query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triton_rerank_bench.collections import load_collection
from triton_rerank_bench.metrics import Floats
from triton_rerank_bench.quality import BM25, Trial, summarise


@pytest.fixture
def trial(collection_folder: Path) -> Trial:
    return Trial(load_collection(collection_folder))


def relevance(trial: Trial) -> Floats:
    """Scores of a system that knows the qrels, in the candidates' order."""
    ids, qrels = trial.collection.document_ids, trial.collection.qrels
    rows = zip(trial.collection.queries, trial.candidates.indexes, strict=True)
    return np.array([[qrels[query].get(ids[index], 0) for index in row] for query, row in rows], dtype=float)


def test_system_that_knows_the_qrels_is_perfect_and_its_reverse_is_not(trial: Trial) -> None:
    trial.add("oracle", relevance(trial), weight=0.7)
    trial.add("reverse", -relevance(trial), weight=0.7)
    found = {system.system: system for system in summarise(trial, [], seed=1).systems}
    assert (found["oracle"].ndcg_at_10, found["oracle"].mrr_at_10) == (1.0, 1.0)
    assert found["reverse"].mrr_at_10 == pytest.approx(0.25)  # last of four


def test_system_that_scores_all_alike_keeps_bm25s_order(trial: Trial) -> None:
    trial.add("constant", np.zeros(trial.candidates.indexes.shape), weight=0.7)
    assert trial.per_query("constant") == trial.per_query(BM25)


def test_each_system_is_followed_by_its_fusion_with_bm25(trial: Trial) -> None:
    trial.add("model", relevance(trial), weight=0.7)
    names = [system.system for system in summarise(trial, [], seed=1).systems]
    assert names == [BM25, "model", "0.7 model + 0.3 BM25"]


def test_served_models_are_compared_with_each_other_and_with_bm25(trial: Trial) -> None:
    trial.add("int8", relevance(trial), weight=0.7)
    trial.add("fp32", -relevance(trial), weight=0.7)
    quality = summarise(trial, ["int8", "fp32"], seed=1)
    pairs = [(c.first, c.second, c.metric) for c in quality.comparisons]
    assert pairs[:2] == [("int8", "fp32", "ndcg_at_10"), ("int8", "fp32", "mrr_at_10")]
    assert [pair[:2] for pair in pairs[2::2]] == [("int8", BM25), ("fp32", BM25)]
    assert quality.comparisons[1].difference.mean == pytest.approx(0.75)
