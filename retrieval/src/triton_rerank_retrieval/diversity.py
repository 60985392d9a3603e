"""Less of the same: maximal marginal relevance, near-duplicates, a cap per source. Pure; each is a `Step`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank import ConfigurationError
from triton_rerank_retrieval.candidates import Candidate, LeftOut, Outcome, Said, field_of

Similarities = npt.NDArray[np.float64]
Embed = Callable[[list[str]], npt.NDArray[np.float32]]


def token_overlap(texts: Sequence[str]) -> Similarities:
    """Jaccard similarity of the texts' words, float64 ``(n, n)``; texts without words are like each other."""
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    known = {word: place for place, word in enumerate(sorted(set().union(*words)))} if words else {}
    table = np.zeros((len(texts), max(len(known), 1)), np.float64)
    for row, found in enumerate(words):
        table[row, [known[word] for word in found]] = 1.0
    shared, sizes = table @ table.T, table.sum(axis=1)
    union = sizes[:, None] + sizes[None, :] - shared
    return np.where(union > 0, shared / np.maximum(union, 1.0), 1.0)


def by_embeddings(embed: Embed) -> Callable[[Sequence[str]], Similarities]:
    """Cosine similarity by an embedding function: texts -> float32 ``(n, dimensions)``."""

    def similarity(texts: Sequence[str]) -> Similarities:
        """Cosine of each text with each, ``(n, n)``."""
        vectors = np.asarray(embed(list(texts)), np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.where(lengths > 0, lengths, 1.0)
        return np.asarray(unit @ unit.T, np.float64)

    return similarity


@dataclass(frozen=True)
class MaximalMarginalRelevance:
    """Takes one document after the other, each the best by relevance and unlikeness to those before it.

    ``λ × relevance − (1 − λ) × the greatest similarity to what was taken`` (Carbonell and Goldstein 1998), relevance
    being the scores moved to 0 … 1, or the ranks where there are none.

    Attributes:
        lambda_: 1 keeps the order, 0 looks at unlikeness alone.
        similarity: texts -> float64 ``(n, n)``, about 0 … 1.
        k: how many to order so; the rest follows as it was.
    """

    lambda_: float = 0.7
    similarity: Callable[[Sequence[str]], Similarities] = token_overlap
    k: int = 50
    name: str = "mmr"

    def __post_init__(self) -> None:
        _check_share("lambda_", self.lambda_)

    def apply(self, query: str, candidates: Sequence[Candidate[Any]]) -> Outcome[Any]:
        """See `Step`."""
        relevance = _relevance(candidates)
        likeness = self.similarity([one.text for one in candidates])
        left, taken = list(range(len(candidates))), list[int]()
        while left and len(taken) < self.k:
            nearest = likeness[np.ix_(left, taken)].max(axis=1) if taken else np.zeros(len(left))
            worth = self.lambda_ * relevance[left] - (1.0 - self.lambda_) * nearest
            taken.append(left.pop(int(np.argmax(worth))))
        return Outcome([self._said(candidates[place], rank) for rank, place in enumerate(taken + left, 1)], [])

    def _said(self, candidate: Candidate[Any], rank: int) -> Candidate[Any]:
        return candidate.scored(candidate.score, candidate.scale, Said(self.name, rank))


@dataclass(frozen=True)
class NearDuplicates:
    """Leaves out what is nearly the same as a better document.

    Attributes:
        threshold: similarity from which two count as the same, 0 … 1.
        similarity: texts -> float64 ``(n, n)``.
    """

    threshold: float = 0.9
    similarity: Callable[[Sequence[str]], Similarities] = token_overlap
    name: str = "near duplicate"

    def __post_init__(self) -> None:
        _check_share("threshold", self.threshold)

    def apply(self, query: str, candidates: Sequence[Candidate[Any]]) -> Outcome[Any]:
        """See `Step`."""
        likeness = self.similarity([one.text for one in candidates])
        kept, left_out = list[int](), list[LeftOut[Any]]()
        for place, candidate in enumerate(candidates):
            twin = next((other for other in kept if likeness[place, other] >= self.threshold), None)
            if twin is None:
                kept.append(place)
            else:
                reason = f"{likeness[place, twin]:.2f} like {candidates[twin].id[:80]}"
                left_out.append(LeftOut(candidate, self.name, reason))
        return Outcome([candidates[place] for place in kept], left_out)


@dataclass(frozen=True)
class PerSource:
    """At most ``most`` documents of each source.

    Attributes:
        most: at least 1.
        source: field, or function of the document; documents without one are not counted.
    """

    most: int
    source: str | Callable[[Any], object] = "source"
    name: str = "per source"

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigurationError(f"most is {self.most}: it must be at least 1")

    def apply(self, query: str, candidates: Sequence[Candidate[Any]]) -> Outcome[Any]:
        """See `Step`."""
        outcome: Outcome[Any] = Outcome([], [])
        seen: Counter[object] = Counter()
        for one in candidates:
            source = self.source(one.document) if callable(self.source) else field_of(one.document, self.source)
            seen[source] += 1
            if source is None or seen[source] <= self.most:
                outcome.kept.append(one)
            else:
                outcome.left_out.append(LeftOut(one, self.name, f"number {seen[source]} of {str(source)[:80]}"))
        return outcome


def _relevance(candidates: Sequence[Candidate[Any]]) -> Similarities:
    scores = [one.score for one in candidates]
    values = -np.arange(len(scores), dtype=np.float64) if None in scores else np.array(scores, np.float64)
    spread = np.ptp(values) if values.size else 0.0
    return np.zeros(values.shape) if spread == 0 else np.asarray((values - values.min()) / spread, np.float64)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{name} is {value}: it must be from 0 to 1")
