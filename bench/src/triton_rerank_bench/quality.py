"""Measures quality: every system reorders the same candidates of BM25."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import Progress

from triton_rerank_bench import bi_encoder, served
from triton_rerank_bench.bi_encoder import BiEncoder
from triton_rerank_bench.collections import Collection
from triton_rerank_bench.first_stage import Bm25, Candidates
from triton_rerank_bench.metrics import (
    Difference,
    Floats,
    bootstrap_difference,
    fuse,
    mrr_at_10,
    ndcg_at_10,
    order,
)
from triton_rerank_bench.repository import read_model
from triton_rerank_bench.rerankers import Reranker

BM25 = "BM25"
BI_ENCODER = "bi-encoder"
CANDIDATES = 100
MODEL_WEIGHT = 0.7  # of a served model, fused with BM25
COSINE_WEIGHT = 0.75  # of the bi-encoder, fused with BM25
METRICS: Mapping[str, Callable[[Sequence[str], Mapping[str, int]], float]] = {
    "ndcg_at_10": ndcg_at_10,
    "mrr_at_10": mrr_at_10,
}


@dataclass(frozen=True)
class SystemQuality:
    """Means over the judged queries."""

    system: str
    ndcg_at_10: float
    mrr_at_10: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on one metric: the mean of first minus second, with its 95 % interval over queries."""

    first: str
    second: str
    metric: str
    difference: Difference


@dataclass(frozen=True)
class CollectionQuality:
    """One collection's figures.

    Attributes:
        collection: its name.
        n_documents: in the corpus.
        n_queries: in the file.
        n_judged: with a relevant document; the figures are over these.
        systems: in the order measured.
        comparisons: served models with each other and with BM25.
    """

    collection: str
    n_documents: int
    n_queries: int
    n_judged: int
    systems: list[SystemQuality]
    comparisons: list[Comparison]


class Trial:
    """One collection with the scores that each system gave to its candidates.

    Args:
        collection: what is searched.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.queries = list(collection.queries.values())
        self.candidates: Candidates = Bm25(collection.documents).search(self.queries, top_k=CANDIDATES)
        self.scores: dict[str, Floats] = {BM25: self.candidates.scores}  # system -> (q, k)

    def add(self, system: str, scores: Floats, *, weight: float) -> None:
        """Take in a system's scores, ``(q, k)``, and those of its fusion with BM25."""
        self.scores[system] = scores
        self.scores[f"{weight:g} {system} + {1 - weight:g} BM25"] = fuse(scores, self.scores[BM25], weight=weight)

    def per_query(self, system: str) -> dict[str, list[float]]:
        """Metric -> one value a judged query."""
        ranked = np.take_along_axis(self.candidates.indexes, order(self.scores[system]), axis=1)
        ids, qrels = self.collection.document_ids, self.collection.qrels
        rankings = [[ids[index] for index in row] for row in ranked]
        return {
            name: [
                metric(ranking, qrels[query]) for query, ranking in zip(self.collection.queries, rankings, strict=True)
            ]
            for name, metric in METRICS.items()
        }


def measure_quality(
    collections: Sequence[Collection],
    rerankers: Sequence[Reranker],
    encoder: BiEncoder | None,
    *,
    seed: int,
    progress: Progress,
) -> tuple[list[CollectionQuality], str | None]:
    """Measure BM25, the bi-encoder, each served model and their fusions.

    Args:
        collections: what is searched.
        rerankers: served one after another, each by its own Triton.
        encoder: the bi-encoder, or None to leave it out.
        seed: of the bootstrap.
        progress: where progress is shown.

    Returns:
        Figures a collection, and Triton's version (None where nothing was served).

    Raises:
        BenchError: a repository holds no such model.
        ServerStartError: Triton did not start.
        RerankError: a served model did not answer.
    """
    models = [read_model(reranker.model_repository, reranker.model).info.name for reranker in rerankers]  # fail early
    trials = [Trial(collection) for collection in progress.track(collections, description="BM25")]
    if encoder is not None:
        for trial in progress.track(trials, description=BI_ENCODER):
            cosines = bi_encoder.score_candidates(
                encoder.embed, trial.queries, trial.collection.documents, trial.candidates
            )
            trial.add(BI_ENCODER, cosines, weight=COSINE_WEIGHT)
    version = None
    for reranker, model in zip(rerankers, models, strict=True):
        version = _add_served(trials, reranker, model, progress)
    labels = [reranker.label for reranker in rerankers]
    return [summarise(trial, labels, seed=seed) for trial in trials], version


def summarise(trial: Trial, served_labels: Sequence[str], *, seed: int) -> CollectionQuality:
    """Means a system, and differences between served models and to BM25.

    Args:
        trial: with the scores of every system.
        served_labels: systems to compare with each other and with BM25.
        seed: of the bootstrap.
    """
    values = {system: trial.per_query(system) for system in trial.scores}
    pairs = [*itertools.combinations(served_labels, 2), *((label, BM25) for label in served_labels)]
    return CollectionQuality(
        collection=trial.collection.name,
        n_documents=len(trial.collection.documents),
        n_queries=trial.collection.n_queries,
        n_judged=len(trial.queries),
        systems=[
            SystemQuality(system, **{metric: float(np.mean(numbers)) for metric, numbers in of_metric.items()})
            for system, of_metric in values.items()
        ],
        comparisons=[
            Comparison(
                first, second, metric, bootstrap_difference(values[first][metric], values[second][metric], seed=seed)
            )
            for first, second in pairs
            for metric in METRICS
        ],
    )


def _add_served(trials: Sequence[Trial], reranker: Reranker, model: str, progress: Progress) -> str:
    task = progress.add_task(reranker.label, total=sum(len(trial.queries) for trial in trials))

    def show(step: str) -> None:
        progress.update(task, description=f"{reranker.label}: {step}")

    with served.serve(reranker.model_repository, model, on_progress=show) as running:
        for trial in trials:
            show(trial.collection.name)
            logits = served.score_candidates(
                running.client,
                trial.queries,
                trial.collection.documents,
                trial.candidates,
                on_query=lambda: progress.advance(task),
            )
            trial.add(reranker.label, logits, weight=MODEL_WEIGHT)
        return running.triton_version
