"""What a ranking is worth, how two rankings agree, and how sure a difference is. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DEPTH = 10
CONFIDENCE = 0.95
RESAMPLES = 10_000

Floats = npt.NDArray[np.float64]


def ndcg_at_10(ranking: Sequence[str], relevance: Mapping[str, int]) -> float:
    """Normalised discounted cumulative gain of the first ten, with linear gain.

    Args:
        ranking: document ids, best first, each once.
        relevance: document id -> relevance of the judged documents; all of them count for the ideal ranking, also
            those that the first stage did not find.

    Returns:
        0 to 1; 0 where nothing is relevant.
    """
    gains = [relevance.get(document, 0) for document in ranking[:DEPTH]]
    ideal = sorted(relevance.values(), reverse=True)[:DEPTH]
    best = _discounted(ideal)
    return _discounted(gains) / best if best > 0 else 0.0


def mrr_at_10(ranking: Sequence[str], relevance: Mapping[str, int]) -> float:
    """Reciprocal rank of the first relevant document among the first ten.

    Args:
        ranking: document ids, best first.
        relevance: document id -> relevance; 1 or more is relevant.

    Returns:
        1, 1/2 … 1/10, or 0 where the first ten hold none.
    """
    for rank, document in enumerate(ranking[:DEPTH], 1):
        if relevance.get(document, 0) > 0:
            return 1.0 / rank
    return 0.0


def order(scores: Floats) -> npt.NDArray[np.int64]:
    """Indexes, best score first; equal scores keep their order, as the client does.

    Args:
        scores: ``(…, k)``; the last axis is ordered.
    """
    return np.argsort(-scores, axis=-1, kind="stable").astype(np.int64)


def z_scores(scores: Floats) -> Floats:
    """Scores of each query with mean 0 and deviation 1, so that two systems can be added.

    Args:
        scores: float64 ``(q, k)``.

    Returns:
        The same shape; zeros where all scores of a query are equal.
    """
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = scores.std(axis=1, keepdims=True)
    deviation[np.ptp(scores, axis=1) == 0] = 1.0  # rounding can leave a constant row with a deviation of 1e-17
    return np.asarray(centred / deviation, dtype=np.float64)


def fuse(first: Floats, second: Floats, *, weight: float) -> Floats:
    """``weight`` × z-scores of the first system + (1 − ``weight``) × z-scores of the second, ``(q, k)``."""
    return weight * z_scores(first) + (1.0 - weight) * z_scores(second)


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two score lists: 1 the same order, −1 the reverse.

    Args:
        first: n scores, n at least 2.
        second: n scores of the same documents.

    Returns:
        −1 to 1; 0 where a list is constant, since it has no order to agree with.
    """
    upper = np.triu_indices(len(first), k=1)
    a, b = (np.sign(np.subtract.outer(scores, scores))[upper] for scores in (np.array(first), np.array(second)))
    pairs = math.sqrt(float(np.count_nonzero(a)) * float(np.count_nonzero(b)))
    return float((a * b).sum()) / pairs if pairs else 0.0


@dataclass(frozen=True)
class Difference:
    """Mean difference of two systems over the same queries.

    Attributes:
        mean: first minus second.
        low: lower end of the confidence interval.
        high: its upper end.
    """

    mean: float
    low: float
    high: float


def bootstrap_difference(
    first: Sequence[float], second: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> Difference:
    """Paired percentile bootstrap of the mean difference over queries, at 95 % confidence.

    Args:
        first: one value a query.
        second: one value a query, same queries in the same order.
        seed: same seed, same interval.
        resamples: how often the queries are drawn again.
    """
    differences = np.subtract(first, second)  # (q,)
    drawn = np.random.default_rng(seed).integers(0, len(differences), size=(resamples, len(differences)))
    means = differences[drawn].mean(axis=1)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Difference(float(differences.mean()), float(low), float(high))


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
