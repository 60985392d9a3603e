"""Which setting is the better one, under a bound of p99 and in spite of noise; and how many machines a rate needs."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from triton_rerank_bench.load.generator import LoadFigures

HEADROOM = 0.8  # of a machine's capacity may be used: a server at its capacity has a queue without end
LEAST_NOISE = 0.02  # no difference below it counts, however calm the machine seemed
ALIKE = 0.97  # of the highest throughput is as good, if fewer callers reach it

_NOISE_FACTOR = 3.0


@dataclass(frozen=True)
class Score:
    """What a setting achieves at its best level; it holds where no call failed and p99 is within the bound."""

    holds: bool
    pairs_per_s: float
    p99_ms: float

    def beats(self, other: Score, noise: float) -> bool:
        """Better by more than this share of noise: more pairs a second; where neither holds the bound, less latency."""
        if self.holds != other.holds:
            return self.holds
        if self.holds:
            return self.pairs_per_s > other.pairs_per_s * (1 + noise)
        return self.p99_ms * (1 + noise) < other.p99_ms


def holds(figures: LoadFigures, p99_ms: float | None) -> bool:
    """No call failed, and p99 is within the bound, if there is one."""
    return not figures.errors and (p99_ms is None or figures.latency.p99_ms <= p99_ms)


def operating_point(levels: Sequence[LoadFigures], p99_ms: float | None) -> LoadFigures:
    """The level to run at: of those that hold the bound the fastest, or one alike with fewer callers.

    Levels are of one setting, at least one, callers ascending. Where none holds: the one with the lowest p99, which
    comes closest.
    """
    held = [figures for figures in levels if holds(figures, p99_ms)]
    if not held:
        return min(levels, key=lambda figures: (bool(figures.errors), figures.latency.p99_ms))
    most = max(figures.pairs_per_s for figures in held)
    return next(figures for figures in held if figures.pairs_per_s >= ALIKE * most)


def score(figures: LoadFigures, p99_ms: float | None, drift: float = 1.0) -> Score:
    """Judge one level, taken back to the machine's usual speed where it was ``drift`` times faster meanwhile."""
    return Score(holds(figures, p99_ms), figures.pairs_per_s / drift, figures.latency.p99_ms * drift)


def noise_of(values: Sequence[float]) -> float:
    """How far two measurements may differ that should be equal.

    Each setting is held against the mean of two measurements, and against the best one, that was held so too. If
    single ones scatter by a standard deviation, that difference scatters by 1.7 of them, and the median difference of
    neighbours is 0.95: three times the latter is what chance exceeds in one comparison of twenty, on one side.
    The values are repeated measurements of one setting, in their order; the result is a share, `LEAST_NOISE` or more.
    """
    differences = [2 * abs(a - b) / (a + b) for a, b in itertools.pairwise(values) if a + b > 0]
    return max(LEAST_NOISE, _NOISE_FACTOR * statistics.median(differences)) if differences else LEAST_NOISE


def machines(rate: float, capacity: float, headroom: float = HEADROOM) -> int:
    """How many machines answer so many pairs a second, if a share of the capacity of each is used."""
    return max(1, math.ceil(rate / (capacity * headroom) - 1e-9))  # 4.0000000001 machines are 4


def why(new: Score, old: Score, *, kept: bool) -> str:
    """What a trial came to beside the best setting so far, in a few words."""
    if new.holds != old.holds:
        return "holds the p99, the best so far did not" if new.holds else "does not hold the p99"
    change = new.pairs_per_s / old.pairs_per_s - 1 if new.holds else new.p99_ms / old.p99_ms - 1
    what = "pairs/s" if new.holds else "p99"
    return f"{change:+.1%} {what}" + (", kept" if kept else "")
