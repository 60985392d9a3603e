"""Rules of a business, after the model's score: each says what it did and why. Pure; dates are given, not read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Protocol

from triton_rerank import ConfigurationError
from triton_rerank_retrieval.candidates import MODEL_SCORE, Candidate, Filter, LeftOut, Outcome, Said, field_of, matches


@dataclass(frozen=True)
class Drop:
    """The candidate goes."""

    reason: str


@dataclass(frozen=True)
class Change:
    """The candidate's score moves by ``amount``, on the scale that the rules are for."""

    amount: float
    reason: str


class Rule(Protocol):
    """Looks at one candidate."""

    @property
    def name(self) -> str:
        """What results call it."""

    def judge(self, query: str, candidate: Candidate[Any]) -> Drop | Change | None:
        """None leaves the candidate as it is."""


class Rules:
    """Applies rules in turn and sorts by what comes out; equal scores keep their order. A `Step`.

    Scores change, logits never do: ``Candidate.said`` keeps the model's own score and logit, and each rule's reason.
    A candidate whose score is on another scale (a fallback's order, a list that no model scored) keeps its score, and
    no threshold applies to it; only drops by content do.

    Args:
        rules: asked in this order, each about the score that the ones before it left.
        scale: the stage whose scores the amounts and thresholds are for: "score" is a reranker's after its activation.
    """

    def __init__(self, rules: Sequence[Rule], *, scale: str = MODEL_SCORE) -> None:
        self._rules = tuple(rules)
        self._scale = scale

    def apply(self, query: str, candidates: Sequence[Candidate[Any]]) -> Outcome[Any]:
        """See `Step`."""
        judged = [self._judge(query, candidate) for candidate in candidates]
        kept = [one for one in judged if isinstance(one, Candidate)]
        if all(one.scale == self._scale for one in kept):  # without a score: what a cascade ranks below its best
            kept.sort(key=lambda one: (one.score is None, -(one.score or 0.0)))
        return Outcome(kept, [one for one in judged if isinstance(one, LeftOut)])

    def _judge(self, query: str, candidate: Candidate[Any]) -> Candidate[Any] | LeftOut[Any]:
        for rule in self._rules:
            said = rule.judge(query, candidate)
            if isinstance(said, Drop):
                return LeftOut(candidate, rule.name, said.reason)
            if said is not None and candidate.scale == self._scale and candidate.score is not None:
                score = candidate.score + said.amount
                candidate = candidate.scored(score, self._scale, Said(rule.name, score=score, reason=said.reason))
        return candidate


@dataclass(frozen=True)
class Only:
    """Drops what a filter does not match: jurisdiction, document type, a date in force.

    Attributes:
        filter: as for `Retriever.search`.
        reason: what the result says of a dropped document.
    """

    filter: Filter
    reason: str
    name: str = "only"

    def judge(self, query: str, candidate: Candidate[Any]) -> Drop | None:
        """See `Rule`."""
        return None if matches(self.filter, candidate.document) else Drop(self.reason)


@dataclass(frozen=True)
class Boost:
    """Adds ``amount`` where a word stands in the text, or a filter matches the document.

    Attributes:
        amount: below 0 lowers the document.
        keywords: any of them, as whole words in any case; empty means that ``filter`` alone decides.
        filter: None means that the keywords alone decide; with both, both must hold.
        query_too: the keyword must stand in the query as well.
    """

    amount: float
    keywords: tuple[str, ...] = ()
    filter: Filter | None = None
    query_too: bool = False
    name: str = "boost"

    def __post_init__(self) -> None:
        if not self.keywords and self.filter is None:
            raise ConfigurationError(f"{self.name}: give keywords, a filter or both; without them it would mean all")

    def judge(self, query: str, candidate: Candidate[Any]) -> Change | None:
        """See `Rule`."""
        if not matches(self.filter, candidate.document):
            return None
        found = [word for word in self.keywords if has_word(candidate.text, word)]
        if self.query_too:
            found = [word for word in found if has_word(query, word)]
        if self.keywords and not found:
            return None
        return Change(self.amount, f"{self.amount:+g} for {', '.join(found) if found else 'its fields'}")


@dataclass(frozen=True)
class Recency:
    """Adds ``amount`` to a document of today, half of it to one that is ``half_life_days`` old, and so on.

    Attributes:
        amount: most that is added.
        half_life_days: above 0.
        field: holds a date, a datetime or an ISO string; a document without one gets nothing, one of the future all.
        today: a date, or a function that gives one.
    """

    amount: float
    half_life_days: float
    field: str = "date"
    today: date | Callable[[], date] = date.today
    name: str = "recency"

    def __post_init__(self) -> None:
        if not self.half_life_days > 0:
            raise ConfigurationError(f"half_life_days is {self.half_life_days}: it must be above 0")

    def judge(self, query: str, candidate: Candidate[Any]) -> Change | None:
        """See `Rule`."""
        written = as_date(field_of(candidate.document, self.field))
        if written is None:
            return None
        today = self.today() if callable(self.today) else self.today
        days = max(0, (today - written).days)
        amount = self.amount * 0.5 ** (days / self.half_life_days)
        return Change(amount, f"{amount:+.3g}, {days} days old")


@dataclass(frozen=True)
class Threshold:
    """Drops a reranked document whose score is under a bound, which may depend on the query's route.

    Attributes:
        min_score: the bound, on the scale "score"; for routes that ``by_route`` does not name.
        by_route: route -> its bound.
        route: query -> route, for instance `Router.choose`.
    """

    min_score: float
    by_route: Mapping[str, float] | None = None
    route: Callable[[str], str] | None = None
    name: str = "threshold"

    def judge(self, query: str, candidate: Candidate[Any]) -> Drop | None:
        """See `Rule`."""
        route = self.route(query) if self.route else ""
        bound = (self.by_route or {}).get(route, self.min_score)
        if candidate.score is None or candidate.scale != MODEL_SCORE or candidate.score >= bound:
            return None
        return Drop(f"score {candidate.score:.3g} is under {bound:g}" + (f" of {route}" if route else ""))


@dataclass(frozen=True)
class Safety:
    """Drops what must not be shown, whatever its score.

    Attributes:
        unsafe: document's text -> why it is unsafe, or None; a regular expression is searched for in any case.
    """

    unsafe: str | Callable[[str], str | None]
    name: str = "safety"

    def judge(self, query: str, candidate: Candidate[Any]) -> Drop | None:
        """See `Rule`."""
        if callable(self.unsafe):
            reason = self.unsafe(candidate.text)
            return None if reason is None else Drop(reason)
        found = re.search(self.unsafe, candidate.text, re.IGNORECASE)
        return None if found is None else Drop(f"it says {found.group()[:80]!r}")


def with_context(query: str, context: Mapping[str, object]) -> str:
    """The query with what is known of the one who asks: ``query (age: 70; allergies: penicillin)``.

    Args:
        query: as asked.
        context: name -> value; None and empty values are left out.
    """
    known = "; ".join(f"{name}: {value}" for name, value in context.items() if value not in (None, "", [], ()))
    return f"{query} ({known})" if known else query


def has_word(text: str, word: str) -> bool:
    """Does the word, or phrase, stand in the text as a whole, in any case?"""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def as_date(value: object) -> date | None:
    """A date of a field; None if there is none or it is no date."""
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
