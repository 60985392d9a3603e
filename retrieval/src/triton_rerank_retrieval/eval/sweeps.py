"""How much is enough: K, weights and thresholds. Weights are never judged on the queries that chose them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from triton_rerank_retrieval.eval.data import Collection
from triton_rerank_retrieval.eval.evaluate import Bench, Ran
from triton_rerank_retrieval.eval.plan import SystemSpec
from triton_rerank_retrieval.pipeline import RERANK, Retrieved

KS = (5, 10, 20, 30, 40, 60, 80, 100, 150, 200)
KNEE = 0.99  # of the best figure
MAIN = "nDCG@10"
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LAMBDAS = (1.0, 0.95, 0.9, 0.8)
BINS = 10
BAGS = 1_000
EQUAL = 1e-9  # what rounding makes of equal means

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KPoint:
    """One depth of the first stage: mean of the main measure, and median seconds a query (None: not timed)."""

    k: int
    quality: float
    seconds: float | None


def sweep_k(bench: Bench, system: SystemSpec, seconds: Callable[[SystemSpec], float | None]) -> list[KPoint]:
    """Quality and latency against the depth, up to the system's own."""
    points = []
    for k in [k for k in KS if k < system.depth] + [system.depth]:
        shallow = replace(system, depth=k)
        quality = float(np.mean(list(bench.run(shallow).values[MAIN].values())))
        points.append(KPoint(k, quality, seconds(shallow)))
    return points


def knee(points: Sequence[KPoint]) -> KPoint:
    """The smallest K that keeps 99 % of the best figure."""
    best = max(point.quality for point in points)
    return next(point for point in points if point.quality >= KNEE * best)


@dataclass(frozen=True)
class Tuned:
    """A system whose settings for each half of the queries were chosen on the other half.

    Attributes:
        chosen: half ("even", "odd": places in the collection) -> the system chosen there.
        values: measure -> query id -> value, each under the settings of the other half.
        ran: the same queries' results.
    """

    chosen: Mapping[str, SystemSpec]
    ran: Ran


def tune(bench: Bench, system: SystemSpec, *, on_step: Callable[[str], None] = lambda _: None) -> Tuned:
    """Choose fusion weights, blend, depth and λ on one half of the queries, and judge them on the other; both ways."""
    queries = list(bench.collection.queries)
    halves = {"even": queries[::2], "odd": queries[1::2]}
    chosen = {name: _choose(bench, system, half, on_step) for name, half in halves.items()}
    judged = [bench.run(chosen["odd"], halves["even"]), bench.run(chosen["even"], halves["odd"])]
    results: dict[str, Retrieved] = {}
    values: dict[str, dict[str, float]] = {name: {} for name in bench.measures}
    for ran in judged:
        results.update(ran.results)
        for name, of_query in ran.values.items():
            values[name].update(of_query)
    order = {name: {query: of_query[query] for query in queries} for name, of_query in values.items()}
    return Tuned(chosen, Ran({query: results[query] for query in queries}, order))


def n_steps(system: SystemSpec) -> int:
    """How often `tune` calls ``on_step`` for a system."""
    shallower, others = [k for k in KS if k < system.depth], [value for value in LAMBDAS if value != system.mmr]
    return 2 * (len(_grid(system)) + 1 + len(shallower) + 1 + len(others))


def _grid(system: SystemSpec) -> list[tuple[float | None, float | None]]:
    """Weight of the second first stage, and blend; None where there is none to choose."""
    weights = WEIGHTS if len(system.retrievers) == 2 else (None,)
    return list(itertools.product(weights, WEIGHTS if system.reranker else (None,)))


def _choose(bench: Bench, system: SystemSpec, queries: Sequence[str], on_step: Callable[[str], None]) -> SystemSpec:
    """Weights and blend from a grid, `bagged`; then depth and λ, which stay unless another is `clearly_better`."""

    def values(systems: Sequence[SystemSpec]) -> Floats:  # (settings, queries)
        """The main measure of each system and query, ``(systems, queries)``."""
        rows = []
        for one in systems:
            on_step(one.name)
            of_query = bench.run(one, queries).values[MAIN]
            rows.append([of_query[query] for query in queries])
        return np.array(rows, float)

    grid = _grid(system)
    found = bagged(values([_weighted(system, *place) for place in grid]), np.array(grid, float))
    best = _weighted(system, *(None if np.isnan(place) else round(float(place), 2) for place in found))
    depths = [best, *(replace(best, depth=k) for k in KS if k < system.depth)]
    best = depths[clearly_better(values(depths))]
    diverse = [best, *(replace(best, mmr=value) for value in LAMBDAS if value != best.mmr)]
    return diverse[clearly_better(values(diverse))]


def _weighted(system: SystemSpec, second: float | None, blend: float | None) -> SystemSpec:
    weights = system.weights if second is None else (round(1 - second, 2), second)
    return replace(system, weights=weights, blend=blend)


def bagged(values: Floats, places: Floats, *, seed: int = 1) -> Floats:
    """The mean of the settings that are the best of bootstrap samples of the queries (bagging, Breiman 1996).

    The best of a grid on a few dozen queries is mostly luck: the next sample of queries has its best elsewhere. The
    mean of these places varies far less, and lies where all are good, since quality has one hill over weights.

    Args:
        values: quality, (settings, queries).
        places: of the settings, (settings, coordinates); equally good ones count with the mean of their places.
        seed: same seed, same choice.

    Returns:
        ``(coordinates,)``.
    """
    n = values.shape[1]
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=BAGS)
    means = drawn @ values.T / n  # (bags, settings)
    best = means >= means.max(axis=1, keepdims=True) - EQUAL
    return np.asarray((best / best.sum(axis=1, keepdims=True)).mean(axis=0) @ places, np.float64)


def clearly_better(values: Floats) -> int:
    """Which of several settings to take instead of the first: the best, if it gains more than one standard error.

    Args:
        values: quality, (settings, queries); the error is that of the mean of the paired differences.
    """
    best = int(values.mean(axis=1).argmax())
    gained = values[best] - values[0]
    error = gained.std(ddof=1) / np.sqrt(gained.size) if gained.size > 1 else np.inf
    return best if gained.mean() > error else 0


@dataclass(frozen=True)
class ThresholdPoint:
    """What a ``min_score`` would do.

    Attributes:
        min_score: the bound.
        precision: share of what is kept that is relevant.
        recall: share of what is relevant that is kept.
        kept: documents a query.
    """

    min_score: float
    precision: float
    recall: float
    kept: float


@dataclass(frozen=True)
class Calibration:
    """What a reranker's scores mean on this collection.

    Attributes:
        thresholds: precision and recall against ``min_score``.
        reliability: in ten bins of equal size: mean fitted probability, share that is relevant.
        slope, intercept: of the fit ``sigmoid(slope × score + intercept)``.
        high, medium: scores from which a document is relevant with the probabilities asked for.
    """

    thresholds: tuple[ThresholdPoint, ...]
    reliability: tuple[tuple[float, float], ...]
    slope: float
    intercept: float
    high: float
    medium: float


def calibrate(collection: Collection, ran: Ran, *, high: float = 0.5, medium: float = 0.2) -> Calibration | None:
    """Fit probabilities to a reranker's scores (Platt), and find the scores that bands begin at.

    Args:
        collection: a document without a judgement counts as not relevant.
        ran: of a system with a reranker.
        high: least probability of the band "high"; above ``medium``.
        medium: of the band "medium".

    Returns:
        None where no reranker scored, or its scores do not rise with relevance.
    """
    scores, relevant = _judged(collection, ran)
    if scores.size == 0 or np.ptp(scores) == 0 or np.ptp(relevant) == 0:
        return None
    slope, intercept = _platt(scores, relevant)
    if slope <= 0:
        return None
    bounds = [(np.log(p / (1 - p)) - intercept) / slope for p in (high, medium)]
    fitted = _sigmoid(slope * scores + intercept)
    return Calibration(
        _thresholds(collection, ran, scores, relevant),
        _reliability(fitted, relevant),
        float(slope),
        float(intercept),
        float(bounds[0]),
        float(bounds[1]),
    )


def _judged(collection: Collection, ran: Ran) -> tuple[Floats, Floats]:
    """The reranker's scores of all candidates, and whether each is relevant."""
    pairs = [
        (said.score, collection.qrels[query].get(one.id, 0) > 0)
        for query, result in ran.results.items()
        for one in result
        for said in one.said
        if said.stage == RERANK and said.score is not None
    ]
    return np.array([score for score, _ in pairs], float), np.array([known for _, known in pairs], float)


def _platt(scores: Floats, relevant: Floats) -> tuple[float, float]:
    centre, scale = float(scores.mean()), float(scores.std())
    units = (scores - centre) / scale

    def loss(parameters: Floats) -> float:
        """Logistic loss of a slope and an intercept."""
        values = parameters[0] * units + parameters[1]
        return float(np.mean(np.logaddexp(0.0, values) - relevant * values))

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x
    return float(slope / scale), float(intercept - slope * centre / scale)


def _thresholds(collection: Collection, ran: Ran, scores: Floats, relevant: Floats) -> tuple[ThresholdPoint, ...]:
    in_all = sum(sum(grade > 0 for grade in collection.qrels[query].values()) for query in ran.results)
    points = []
    for bound in np.quantile(scores, np.linspace(0.0, 0.99, 21)):
        kept = scores >= bound
        hits = float(relevant[kept].sum())
        points.append(
            ThresholdPoint(float(bound), hits / kept.sum(), hits / in_all, float(kept.sum()) / len(ran.results))
        )
    return tuple(points)


def _reliability(fitted: Floats, relevant: Floats) -> tuple[tuple[float, float], ...]:
    bins = np.array_split(np.argsort(fitted, kind="stable"), BINS)
    return tuple((float(fitted[rows].mean()), float(relevant[rows].mean())) for rows in bins if rows.size)


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -values)), np.float64)
