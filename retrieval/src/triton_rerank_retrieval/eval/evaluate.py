"""Runs systems over a collection, from what was computed before where that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from triton_rerank import CascadeScorer, Scorer
from triton_rerank_retrieval.candidates import (
    Candidate,
    Feedback,
    FeedbackRetriever,
    Retriever,
    ScoringRetriever,
    Step,
)
from triton_rerank_retrieval.diversity import MaximalMarginalRelevance
from triton_rerank_retrieval.eval.data import Collection, read_run
from triton_rerank_retrieval.eval.measures import PerQuery, Run, evaluate
from triton_rerank_retrieval.eval.plan import Plan, RerankerSpec, RetrieverSpec, SystemSpec
from triton_rerank_retrieval.eval.rerankers import OpenRerankers, identity
from triton_rerank_retrieval.eval.store import (
    KeptFeedbackRetriever,
    KeptRetriever,
    KeptScorer,
    KeptScoringRetriever,
    Store,
)
from triton_rerank_retrieval.files import digest_of
from triton_rerank_retrieval.first_stages.bm25 import Bm25, Bm25Options
from triton_rerank_retrieval.first_stages.dense import Dense
from triton_rerank_retrieval.first_stages.embedder import sentence_transformer
from triton_rerank_retrieval.first_stages.foreign import Foreign
from triton_rerank_retrieval.fusion import ReciprocalRank, WeightedZ
from triton_rerank_retrieval.pipeline import Pipeline, Retrieved

TIMEOUT_S = 3600.0  # a busy machine is slow, not wrong
DIVERSE = 10  # documents that diversity orders

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Ran:
    """One system on one collection.

    Attributes:
        results: query id -> what the pipeline found, to its depth.
        values: measure -> query id -> value.
    """

    results: Mapping[str, Retrieved]
    values: PerQuery

    @property
    def run(self) -> Run:
        """Query id -> document ids, best first."""
        return {query: [one.id for one in result] for query, result in self.results.items()}


class Bench:
    """One collection with everything that was opened for it.

    Args:
        collection: what is searched.
        plan: what is measured.
        store: what was computed before.
        rerankers: opened when they are needed.
        measures: names that ir-measures knows.
        cache: folder for embeddings.
    """

    def __init__(
        self,
        collection: Collection,
        plan: Plan,
        store: Store,
        rerankers: OpenRerankers,
        *,
        measures: Sequence[str],
        cache: Path,
    ) -> None:
        self.collection = collection
        self.plan = plan
        self.measures = tuple(measures)
        self.store = store
        self._rerankers = rerankers
        self._corpus_name = digest_of(*collection.corpus.ids, *collection.corpus.texts)
        self._depth = max((system.depth for system in plan.systems), default=100)
        self._plain = {spec.name: _retriever(spec, collection, cache) for spec in plan.retrievers}
        self._kept = {spec.name: self._keep(spec) for spec in plan.retrievers}
        self._scorers = {spec.name: self._kept_scorer(spec) for spec in plan.rerankers}

    def run(
        self, system: SystemSpec, queries: Iterable[str] | None = None, *, on_query: Advance = lambda _: None
    ) -> Ran:
        """Search for each judged query, or for some of them."""
        ids = list(self.collection.queries if queries is None else queries)
        results = {}
        pipeline = self.pipeline(system)
        for query in ids:
            results[query] = pipeline.search(self.collection.queries[query], k=system.depth)
            on_query(system.name)
        run = {query: [one.id for one in result] for query, result in results.items()}
        qrels = {query: self.collection.qrels[query] for query in ids}
        return Ran(results, evaluate(qrels, run, self.measures))

    def fill(self, system: SystemSpec, *, on_query: Advance = lambda _: None) -> None:
        """Score everything that the system's first stages find, so that other weights ask for nothing new."""
        wide = replace(system, depth=system.depth * len(system.retrievers), blend=None, light="", mmr=1.0, feedback=0.0)
        retrievers = [self._kept[name] for name in system.retrievers]
        scorer = self._scorers[system.reranker]
        for text in self.collection.queries.values():
            found = {one.id: one for first in retrievers for one in first.search(text, system.depth)}
            everything = _fixed(list(found.values()))
            Pipeline([everything], scorer=scorer, depth=wide.depth, timeout_s=TIMEOUT_S).search(text, k=1)
            on_query(f"{system.name}, pairs")

    def pipeline(self, system: SystemSpec, *, kept: bool = True) -> Pipeline:
        """The system as a pipeline.

        Args:
            system: what it is made of.
            kept: look up what was computed before; False computes all, to be timed.
        """
        retrievers = [(self._kept if kept else self._plain)[name] for name in system.retrievers]
        fusion = WeightedZ(system.weights) if system.fusion == "z" else ReciprocalRank(weights=system.weights)
        steps: list[Step] = [MaximalMarginalRelevance(system.mmr, k=DIVERSE)] if system.mmr < 1 else []
        return Pipeline(
            retrievers,
            scorer=self._scorer(system, kept),
            fusion=fusion,
            feedback=Feedback(weight=system.feedback) if system.feedback else None,
            depth=system.depth,
            blend=system.blend if system.reranker else None,
            steps=steps,
            timeout_s=TIMEOUT_S,
        )

    def seconds(self, system: SystemSpec, n_queries: int) -> list[float]:
        """Seconds of each of the first queries, nothing looked up; one query before them is not counted."""
        pipeline = self.pipeline(system, kept=False)
        texts = list(self.collection.queries.values())[: n_queries + 1]
        seconds = [pipeline.search(text, k=10).seconds["total"] for text in texts]
        return seconds[1:] or seconds

    def _scorer(self, system: SystemSpec, kept: bool) -> Scorer | None:
        if not system.reranker:
            return None
        heavy = self._one(system.reranker, kept)
        return CascadeScorer(self._one(system.light, kept), heavy, keep=system.keep) if system.light else heavy

    def _one(self, name: str, kept: bool) -> Scorer:
        spec = next(spec for spec in self.plan.rerankers if spec.name == name)
        return self._scorers[name] if kept else self._rerankers.get(spec)

    def _keep(self, spec: RetrieverSpec) -> Retriever:
        plain = self._plain[spec.name]
        kind = KeptRetriever
        if isinstance(plain, ScoringRetriever):
            kind = KeptFeedbackRetriever if isinstance(plain, FeedbackRetriever) else KeptScoringRetriever
        return kind(plain, f"{spec} {self._corpus_name}", self.collection.corpus, self.store, self._depth)

    def _kept_scorer(self, spec: RerankerSpec) -> KeptScorer:
        return KeptScorer(lambda: self._rerankers.get(spec), spec.name, identity(spec), self.store)


R = TypeVar("R", bound=ScoringRetriever)


class _Lazy(Generic[R]):
    """A first stage that is built when it is first asked: a run that is complete builds none."""

    def __init__(self, name: str, build: Callable[[], R]) -> None:
        self.name = name
        self._build = build
        self._built: R | None = None

    def search(self, query: str, k: int, filter: Any = None) -> list[Candidate[Any]]:
        """Search, after building what searches at the first call."""
        return self._get().search(query, k, filter)

    def scores_of(self, query: str, ids: Sequence[str]) -> Mapping[str, float]:
        """Score given documents, after building what scores them at the first call."""
        return self._get().scores_of(query, ids)

    def _get(self) -> R:
        self._built = self._built or self._build()
        return self._built


class _LazyBm25(_Lazy[Bm25]):
    def widened(self, query: str, best: Sequence[Candidate[Any]], feedback: Feedback) -> ScoringRetriever:
        """Search by a query that is widened with words of the best documents."""
        return self._get().widened(query, best, feedback)


def _retriever(spec: RetrieverSpec, collection: Collection, cache: Path) -> Retriever:
    corpus = collection.corpus
    if spec.kind == "bm25":
        return _LazyBm25(spec.name, lambda: Bm25.build(corpus, options=Bm25Options(**spec.options), name=spec.name))
    if spec.kind == "run":
        lists = read_run(Path(spec.path), collection)
        of_text = {collection.queries[query]: found for query, found in lists.items()}
        return Foreign(lambda query, k: of_text.get(query, [])[:k], name=spec.name)
    cached = cache / "embeddings.sqlite"
    return _Lazy(spec.name, lambda: Dense.build(corpus, sentence_transformer(spec.model, cache=cached), name=spec.name))


def _fixed(found: list[Candidate[Any]]) -> Foreign:
    return Foreign(lambda query, k: found, name="all")


def first_stage_recall(bench: Bench, ran: Ran, depth: int) -> float:
    """The ceiling of every reranker: the share of relevant documents among the candidates that it is given."""
    shares = []
    for query, result in ran.results.items():
        relevant = {id for id, grade in bench.collection.qrels[query].items() if grade > 0}
        shares.append(len(relevant & {one.id for one in list(result)[:depth]}) / len(relevant))
    return float(np.mean(shares))
