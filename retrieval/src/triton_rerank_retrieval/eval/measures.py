"""What rankings are worth, by ir-measures, and how sure their differences are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from scipy import stats

from triton_rerank import InvalidRequestError

MEASURES = ("nDCG@10", "RR@10", "AP", "R@100", "P@10", "Success@10")
CONFIDENCE = 0.95
RESAMPLES = 10_000

PerQuery = Mapping[str, Mapping[str, float]]  # measure -> query id -> value
Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Sequence[str]]  # query id -> document ids, best first


def check_measures(names: Sequence[str]) -> tuple[str, ...]:
    """Names that ir-measures knows.

    Raises:
        InvalidRequestError: one that it does not.
    """
    for name in names:
        try:
            ir_measures.parse_measure(name)
        except (ValueError, NameError, KeyError, TypeError, SyntaxError) as exc:
            known = ", ".join(MEASURES)
            raise InvalidRequestError(f"measure {name[:80]!r} is none that ir-measures knows: try {known}") from exc
    return tuple(names)


def evaluate(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> PerQuery:
    """Each measure of each judged query; 0 where the run has nothing.

    The order of the run's lists counts, not scores: trec_eval would sort equal scores by document id.
    """
    scored = {
        query: {document: float(len(ids) - rank) for rank, document in enumerate(ids)} for query, ids in run.items()
    }
    parsed = {ir_measures.parse_measure(name): name for name in measures}
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    for metric in ir_measures.iter_calc(list(parsed), qrels, scored):
        values[parsed[metric.measure]][metric.query_id] = float(metric.value)
    return values


def means(values: PerQuery) -> dict[str, float]:
    """Mean of each measure over the queries."""
    return {name: float(np.mean(list(of_query.values()))) for name, of_query in values.items()}


@dataclass(frozen=True)
class Difference:
    """One system minus another over the same queries.

    Attributes:
        mean: of the differences.
        low: lower end of the 95 % interval, by paired bootstrap.
        high: its upper end.
        p_value: of the paired t-test, or 1 where nothing differs; after `corrected`, for all comparisons together.
    """

    mean: float
    low: float
    high: float
    p_value: float


def difference(first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 1) -> Difference:
    """Compare two systems on one measure.

    Args:
        first: query id -> value.
        second: of the same queries.
        seed: same seed, same interval.
    """
    values = np.array([first[query] - second[query] for query in first])
    drawn = np.random.default_rng(seed).integers(0, values.size, size=(RESAMPLES, values.size))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    p_value = float(stats.ttest_1samp(values, 0.0).pvalue) if np.ptp(values) > 0 else 1.0
    return Difference(float(values.mean()), float(low), float(high), p_value)


def corrected(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: each as if it were the only one, for a whole family of comparisons."""
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    result = np.empty(len(p_values))
    result[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in result]
