"""A candidate and what every stage said of it. Frozen data; nothing here does I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from triton_rerank import ConfigurationError

D = TypeVar("D", covariant=True)

Filter = Mapping[str, object] | Callable[[Any], bool]
"""Which documents count: fields with the values that they must have, or a function of the caller's own document."""
MODEL_SCORE = "score"  # the scale of a reranker's scores, after its activation


@dataclass(frozen=True, slots=True)
class Said:
    """What one stage said of one candidate.

    Attributes:
        stage: its name.
        rank: the place that it gave, from 1; None from a stage that gives none.
        score: on the stage's own scale; None if it gave none.
        logit: raw output of a reranker; None elsewhere. No stage ever changes it.
        reason: why the stage changed something, for people.
    """

    stage: str
    rank: int | None = None
    score: float | None = None
    logit: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate(Generic[D]):
    """One document that a first stage found.

    Attributes:
        id: names the document across first stages.
        text: what models read.
        document: the caller's own object.
        score: what the present order was made from; None where a first stage gives ranks only.
        scale: the stage whose scale ``score`` is on; "score" for a reranker's, after its activation.
        said: what every stage said so far, first stage first.
    """

    id: str
    text: str
    document: D
    score: float | None = None
    scale: str = ""
    said: tuple[Said, ...] = ()

    def scored(self, score: float | None, scale: str, said: Said) -> Candidate[D]:
        """The same candidate after another stage."""
        return replace(self, score=score, scale=scale, said=(*self.said, said))


@dataclass(frozen=True, slots=True)
class LeftOut(Generic[D]):
    """A candidate that a step took away, and why.

    Attributes:
        candidate: as it was then.
        step: the step's name.
        reason: for people.
    """

    candidate: Candidate[D]
    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome(Generic[D]):
    """What a step made of a list: nothing is lost between the two.

    Attributes:
        kept: best first.
        left_out: what is no longer in the list.
    """

    kept: list[Candidate[D]]
    left_out: list[LeftOut[D]]


class Step(Protocol):
    """Reorders or thins out a ranked list; pure. Rules and diversity are steps."""

    def apply(self, query: str, candidates: Sequence[Candidate[Any]]) -> Outcome[Any]:
        """Every candidate comes back once, kept or left out."""


class Retriever(Protocol):
    """A first stage; shared between threads. It blocks: the pipeline calls it in a thread where that matters."""

    @property
    def name(self) -> str:
        """What results and reports call it."""

    def search(self, query: str, k: int, filter: Filter | None = None) -> list[Candidate[Any]]:
        """Find the best ``k`` documents.

        Args:
            query: not blank.
            k: at least 1; more than there are means all that match.
            filter: documents that may be found: field -> value, a collection of values or a function of the value; or
                a function of the document. None means all.

        Returns:
            Best first, each document once, at most ``k``.
        """


@runtime_checkable
class ScoringRetriever(Retriever, Protocol):
    """A first stage that can also tell the score of a document that it did not find."""

    def scores_of(self, query: str, ids: Sequence[str]) -> Mapping[str, float]:
        """Document id -> score, on the scale of `search`; ids that it does not have are left out."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """Words of the best documents join the query, and first stages that search by words search once more.

    What is relevant often says it in other words than the query. The first fused list is taken as it is ("pseudo
    relevance"), so a query that finds nothing useful is not mended. Sources: Rocchio 1971; Lavrenko and Croft 2001,
    with the share that RM3 leaves to the query's own words.

    Attributes:
        documents: best ones that are read.
        words: of theirs that join, by their mean weight.
        weight: their share of the query, above 0 and under 1.

    Raises:
        ConfigurationError: a number is out of its bounds.
    """

    documents: int = 10
    words: int = 20
    weight: float = 0.3

    def __post_init__(self) -> None:
        numbers: list[object] = [self.documents, self.words]
        counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers)
        weight: object = self.weight
        if not counts or not isinstance(weight, float) or not 0 < weight < 1:
            raise ConfigurationError(
                f"documents is {self.documents!r:.80}, words {self.words!r:.80} and weight {self.weight!r:.80}: the "
                "first two must be whole numbers from 1, the weight of feedback above 0 and under 1"
            )


@runtime_checkable
class FeedbackRetriever(ScoringRetriever, Protocol):
    """A first stage whose query can be given more words."""

    def widened(self, query: str, best: Sequence[Candidate[Any]], feedback: Feedback) -> ScoringRetriever:
        """This first stage for this one query, with words of the documents ``best``, of which it may lack some."""


def ranked(found: Sequence[Candidate[D]], stage: str) -> list[Candidate[D]]:
    """A stage's list with what it said: ranks from 1, and the scores that the candidates have."""
    return [one.scored(one.score, stage, Said(stage, rank, one.score)) for rank, one in enumerate(found, 1)]


def field_of(document: object, name: str) -> object:
    """A field of a caller's document: a key, an attribute, or either of its ``metadata``; None if it has none."""
    for holder in (document, getattr(document, "metadata", None)):
        if isinstance(holder, Mapping) and name in holder:
            return holder[name]
        if holder is not None and not isinstance(holder, Mapping) and hasattr(holder, name):
            value: object = getattr(holder, name)
            return value
    return None


def matches(filter: Filter | None, document: object) -> bool:
    """May this document be found?"""
    if filter is None:
        return True
    if callable(filter):
        return bool(filter(document))
    return all(_fits(wanted, field_of(document, name)) for name, wanted in filter.items())


def _fits(wanted: object, value: object) -> bool:
    if callable(wanted):
        return value is not None and bool(wanted(value))
    if isinstance(wanted, set | frozenset | list | tuple):
        return value in wanted
    return value == wanted
