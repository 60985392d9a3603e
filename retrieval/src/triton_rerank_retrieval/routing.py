"""Which model answers which query, and how much care it takes: routes and levels. Both are scorers of the client."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from triton_rerank import CascadeScorer, ConfigurationError, Scorer
from triton_rerank.extending import Call, PairRequest, Scored
from triton_rerank_retrieval.rules import has_word

Level = Literal["speed", "balanced", "accurate"]
K1, B = 1.2, 0.75


@dataclass(frozen=True)
class Router:
    """Names the route of a query. Pure.

    Attributes:
        keywords: route -> words or phrases, any of which sends a query there; the first route that fits wins.
        default: route of every other query.
        classify: query -> route, asked first; None, or a function that gives None, leaves it to the keywords.
    """

    keywords: Mapping[str, tuple[str, ...]]
    default: str
    classify: Callable[[str], str | None] | None = None

    def choose(self, query: str) -> str:
        """The query's route."""
        route = self.classify(query) if self.classify else None
        if route is not None:
            return route
        fits = (name for name, words in self.keywords.items() if any(has_word(query, word) for word in words))
        return next(fits, self.default)


class RoutedScorer:
    """Sends each request to the scorer of its query's route.

    Args:
        router: names the route.
        scorers: route -> who answers; every route of the router has one.
        name: what results, logs and counters call it.

    Raises:
        ConfigurationError: a route has no scorer. At a call: the router's function gave such a route.
    """

    def __init__(self, router: Router, scorers: Mapping[str, Scorer], *, name: str = "router") -> None:
        missing = sorted({*router.keywords, router.default} - set(scorers))
        if missing:
            raise ConfigurationError(f"no scorer for the routes {', '.join(missing)}: give one for each in scorers=")
        self._router = router
        self._scorers = dict(scorers)
        self.name = name

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Ask the route's scorer; its name is what served."""
        route = self._router.choose(request.query.decode())
        if route not in self._scorers:
            raise ConfigurationError(f"classify gave the route {route[:80]!r}: known are {', '.join(self._scorers)}")
        return await self._scorers[route].score(request, call)

    async def is_ready(self, call: Call) -> bool:
        """True if all are."""
        return all([await scorer.is_ready(call) for scorer in self._scorers.values()])

    def close(self) -> None:
        """Close all."""
        for scorer in self._scorers.values():
            scorer.close()

    async def aclose(self) -> None:
        """Close all."""
        for scorer in self._scorers.values():
            await scorer.aclose()


class LexicalScorer:
    """BM25 over the documents of one request, without an index or a server: the cheap stage of a cascade.

    Words are lower-cased and not stemmed; a word's rarity is that among the request's documents. ``max_length`` does
    not apply: nothing is cut.
    """

    def __init__(self, *, name: str = "lexical") -> None:
        self.name = name
        self.model = name

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Score by shared words; 0 where there are none."""
        call.deadline.left_s(doing="documents were compared with the query by words")
        documents = [Counter(_words(document)) for document in request.documents]
        scores = np.zeros(len(documents), np.float64)
        lengths = np.array([sum(words.values()) for words in documents], np.float64)
        norm = K1 * (1 - B + B * lengths / max(lengths.mean(), 1.0))
        for word in sorted(set(_words(request.query))):
            counts = np.array([words[word] for words in documents], np.float64)
            having = np.count_nonzero(counts)
            idf = np.log1p((len(documents) - having + 0.5) / (having + 0.5))
            scores += idf * counts * (K1 + 1) / np.where(counts > 0, counts + norm, 1.0)
        return Scored(
            model=self.model,
            served_by=self.name,
            logits=None,
            scores=scores,
            truncated=np.zeros(len(documents), np.bool_),
            token_count=0,
            requests=0,
        )

    async def is_ready(self, call: Call) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing is held."""

    async def aclose(self) -> None:
        """Nothing is held."""


def scorer_for(level: Level, *, light: Scorer, heavy: Scorer | None = None, keep: int = 20) -> Scorer:
    """How much care: each level orders all documents, so that none gives fewer than were asked for.

    Args:
        level: "speed": shared words pick ``keep`` documents for ``light``; "balanced": ``light`` looks at all, and
            ``heavy`` at its best ``keep``; "accurate": ``heavy`` looks at all.
        light: a fast model.
        heavy: a good one; "speed" does without.
        keep: documents for the better of two stages. Fewer is faster and loses more: ``triton-rerank-eval`` measures
            how much. What a call asks for should not be more than ``keep``: the rest is in the lesser stage's order.

    Raises:
        ConfigurationError: no such level, or no heavy model.
    """
    if level == "speed":
        return CascadeScorer(LexicalScorer(), light, keep=keep, name="speed")
    if level not in ("balanced", "accurate"):
        raise ConfigurationError(f"level is {str(level)[:80]!r}: it must be speed, balanced or accurate")
    if heavy is None:
        raise ConfigurationError(f"the level {level} needs heavy=, the better model")
    return heavy if level == "accurate" else CascadeScorer(light, heavy, keep=keep, name="balanced")


def _words(text: bytes) -> list[str]:
    return re.findall(r"\w+", text.decode().lower())
