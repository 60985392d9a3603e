"""From the lists of several first stages to one: completed, fused and, with feedback, searched once more."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from triton_rerank_retrieval.candidates import (
    Candidate,
    Feedback,
    FeedbackRetriever,
    Filter,
    Retriever,
    Said,
    ScoringRetriever,
    ranked,
)
from triton_rerank_retrieval.fusion import Fusion

Lists = Sequence[list[Candidate[Any]]]


@dataclass(frozen=True)
class OneList:
    """What there is to do for one query.

    Attributes:
        retrievers: first stages.
        fusion: makes one list of several.
        feedback: see `Feedback`; None for none.
        query: as the first stages got it.
        k: candidates of each.
        filter: as they got it.
        lists: what each found; empty for those that failed.
        failed: their names.
    """

    retrievers: Sequence[Retriever]
    fusion: Fusion
    feedback: Feedback | None
    query: str
    k: int
    filter: Filter | None
    lists: Lists
    failed: Container[str]

    @property
    def asks(self) -> bool:
        """Are first stages asked for it, which may take long?"""
        return self.feedback is not None or (len(self.lists) > 1 and self.fusion.completes)

    def run(self) -> list[Candidate[Any]]:
        """The list, best first."""
        candidates = self._fused(self.retrievers, self.lists)
        if self.feedback is None or not candidates:
            return candidates
        best = candidates[: self.feedback.documents]
        asked, again = list(self.retrievers), list(self.lists)
        for place, retriever in enumerate(self.retrievers):
            if isinstance(retriever, FeedbackRetriever) and retriever.name not in self.failed:
                asked[place] = retriever.widened(self.query, best, self.feedback)
                again[place] = ranked(asked[place].search(self.query, self.k, self.filter), retriever.name)
        return self._fused(asked, again)

    def _fused(self, retrievers: Sequence[Retriever], lists: Lists) -> list[Candidate[Any]]:
        if len(lists) == 1:
            return lists[0]
        return self.fusion.fuse(self._completed(retrievers, lists) if self.fusion.completes else lists)

    def _completed(self, retrievers: Sequence[Retriever], lists: Lists) -> Lists:
        """Each list with the candidates that only others found, where its first stage can tell their scores."""
        everything = {one.id: one for found in lists for one in found}
        completed = []
        for retriever, found in zip(retrievers, lists, strict=True):
            missing = [id for id in everything if id not in {one.id for one in found}]
            scores: Mapping[str, float] = {}
            if missing and found and isinstance(retriever, ScoringRetriever):
                scores = retriever.scores_of(self.query, missing)
            more = [_rescored(everything[id], retriever.name, score) for id, score in scores.items()]
            completed.append([*found, *more])
        return completed


def _rescored(found_by_another: Candidate[Any], stage: str, score: float) -> Candidate[Any]:
    return replace(found_by_another, score=score, scale=stage, said=(Said(stage, None, score),))
