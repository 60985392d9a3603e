"""Several ranked lists become one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from triton_rerank import ConfigurationError
from triton_rerank_retrieval.candidates import Candidate, Said

Join = Literal["id", "text"]
Ranking = Sequence[Candidate[Any]]
Floats = npt.NDArray[np.float64]


class Fusion(Protocol):
    """Makes one list of several.

    Attributes:
        completes: ask first stages for the scores of what only others found.
    """

    completes: ClassVar[bool]

    def fuse(self, rankings: Sequence[Ranking]) -> list[Candidate[Any]]:
        """Every candidate of every list once, best first; equal ones as the earlier list has them."""


@dataclass(frozen=True)
class ReciprocalRank:
    """Sum of ``weight / (k + rank)`` over the lists that have the candidate (Cormack et al. 2009).

    Attributes:
        k: how little the first ranks stand out, at least 0.
        weights: one a list, at least 0; empty means 1 each.
        join: what makes two candidates one: the same ``id``, or the same ``text``. What is joined keeps the first's
            id and document, and what was said of each.
    """

    k: float = 60.0
    weights: tuple[float, ...] = ()
    join: Join = "id"
    name: str = "rrf"
    completes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        if not 0 <= self.k < np.inf:
            raise ConfigurationError(f"k is {self.k}: it must be a finite number from 0")

    def fuse(self, rankings: Sequence[Ranking]) -> list[Candidate[Any]]:
        """See `Fusion`."""
        return _fuse(rankings, self.weights, self.join, self.name, lambda n, _: 1.0 / (self.k + np.arange(1, n + 1)))


@dataclass(frozen=True)
class WeightedZ:
    """Weighted sum of z-scores, each list with mean 0 and deviation 1.

    A candidate that a list does not have gets the least z-score of that list; a `Pipeline` asks first stages that can
    tell (`ScoringRetriever`) for its score before. A list without scores counts by rank.

    Attributes:
        weights: one a list, at least 0; empty means equal ones.
        join: as for `ReciprocalRank`.
    """

    weights: tuple[float, ...] = ()
    join: Join = "id"
    name: str = "z"
    completes: ClassVar[bool] = True  # lists are worth more if they have every candidate

    def __post_init__(self) -> None:
        _check_weights(self.weights)

    def fuse(self, rankings: Sequence[Ranking]) -> list[Candidate[Any]]:
        """See `Fusion`."""
        return _fuse(rankings, self.weights, self.join, self.name, lambda _, ranking: z_scores(_scores(ranking)), True)


def z_scores(scores: Floats) -> Floats:
    """Scores ``(n,)`` with mean 0 and deviation 1; zeros where all are equal, or too near to tell apart."""
    if scores.size == 0 or np.ptp(scores) == 0 or not (deviation := float(scores.std())) > 0:
        return np.zeros(scores.shape)
    return np.asarray((scores - scores.mean()) / deviation, np.float64)


def _scores(ranking: Ranking) -> Floats:
    given = [one.score for one in ranking]
    if None in given:
        return -np.arange(len(ranking), dtype=np.float64)
    return np.array(given, np.float64)


@dataclass
class _Joined:
    candidate: Candidate[Any]
    said: list[Said] = field(default_factory=list)
    score: float = 0.0


def _fuse(
    rankings: Sequence[Ranking],
    weights: Sequence[float],
    join: Join,
    name: str,
    worth: Callable[[int, Ranking], Floats],
    fill: bool = False,
) -> list[Candidate[Any]]:
    if weights and len(weights) != len(rankings):
        raise ConfigurationError(f"{len(weights)} weights for {len(rankings)} lists: give one a list")
    joined: dict[str, _Joined] = {}
    for weight, ranking in zip(weights or [1.0] * len(rankings), rankings, strict=True):
        _add(joined, ranking, weight * worth(len(ranking), ranking), join, fill)
    best = sorted(joined.values(), key=lambda one: -one.score)  # stable
    return [_result(one, rank, name) for rank, one in enumerate(best, 1)]


def _add(joined: dict[str, _Joined], ranking: Ranking, values: Floats, join: Join, fill: bool) -> None:
    """One list more. Values are moved so that absence is worth 0, which moves all sums alike."""
    values = values - values.min() if fill and values.size else values
    seen: set[str] = set()
    for candidate, value in zip(ranking, values.tolist(), strict=True):
        key = candidate.id if join == "id" else " ".join(candidate.text.split())
        one = joined.setdefault(key, _Joined(candidate))
        one.said += [said for said in candidate.said if said not in one.said]
        if key not in seen:  # a list that has a document twice counts its better place
            one.score += value
        seen.add(key)


def _result(one: _Joined, rank: int, name: str) -> Candidate[Any]:
    whole = replace(one.candidate, said=tuple(one.said))
    return whole.scored(one.score, name, Said(name, rank, one.score))


def _check_weights(weights: Iterable[float]) -> None:
    if not all(0 <= weight < np.inf for weight in weights):
        raise ConfigurationError(f"weights are {tuple(weights)}: they must be finite numbers from 0")


def blend(first: Ranking, second: Ranking, weight: float, name: str = "blend") -> list[Candidate[Any]]:
    """``weight`` × z-scores of ``second`` + (1 − ``weight``) × those of ``first``, which hold the same candidates."""
    return WeightedZ((1.0 - weight, weight), name=name).fuse([first, second])


FUSIONS: Mapping[str, type[ReciprocalRank] | type[WeightedZ]] = {"rrf": ReciprocalRank, "z": WeightedZ}
