"""Rounds of turns: times every contestant on every workload, and sums up. Knows nothing of who they are."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import kendalltau

from triton_rerank_bench.compare.contestants import Contestant
from triton_rerank_bench.report import Table
from triton_rerank_bench.workloads import TokenStatistics, Workload

WARM_UP_ROUNDS = 2
# Thread pools spin for a moment after a call, and would take cores from the next contestant's first milliseconds.
PAUSE_S = 0.1
_TIMINGS = {
    "contestant": "contestant", "median s": "median_s:.4f", "min s": "min_s:.4f", "max s": "max_s:.4f",
    "pairs/s": "pairs_per_s:,.1f", "tokens/s": "tokens_per_s:,.0f",
}  # fmt: skip


@dataclass
class Rounds:
    """What was measured: workload -> contestant -> seconds a call, one a round; and the scores of its last call."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """One contestant on one workload, over the counted rounds."""

    contestant: str
    median_s: float
    min_s: float
    max_s: float
    pairs_per_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Ratio:
    """Seconds of one contestant over those of another, paired within each round."""

    numerator: str
    denominator: str
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class WorkloadSpeed:
    """One workload; agreements hold Kendall's tau of two contestants' orders, which must be alike to be compared."""

    workload: str
    tokens: TokenStatistics
    timings: list[Timing]
    ratios: list[Ratio]
    agreements: list[dict[str, Any]]

    def parts(self) -> list[str | Table]:
        """For people: seconds, ratios, agreements."""
        tokens = self.tokens
        title = (
            f"{self.workload}: {tokens.pairs} pairs, {tokens.total:,} tokens (mean {tokens.mean:.1f}, "
            f"longest {tokens.longest}, {tokens.tokens_per_word:.2f} a word)"
        )
        return [
            Table(title, _TIMINGS, self.timings),
            *(f"  {r.numerator} / {r.denominator}: {r.median:.3f} ({r.min:.3f} to {r.max:.3f})" for r in self.ratios),
            *(
                f"  order of {each['first']} and {each['second']}: Kendall tau {each['kendall_tau']:.4f}"
                for each in self.agreements
            ),
        ]


def run_rounds(
    contestants: Sequence[Contestant],
    workloads: Sequence[Workload],
    *,
    n_rounds: int,
    seed: int,
    on_call: Callable[[str], None],
    during: AbstractContextManager[object],
    clock: Callable[[], float] = time.perf_counter,
    pause_s: float = PAUSE_S,
) -> Rounds:
    """Time all contestants on all workloads, in a new seeded order each round, after `WARM_UP_ROUNDS` uncounted ones.

    ``on_call`` is told who is next before each turn; ``during`` is entered for each, outside its clock.
    """
    rounds = Rounds(
        seconds={workload.name: {contestant.name: [] for contestant in contestants} for workload in workloads},
        scores={workload.name: {} for workload in workloads},
    )
    shuffler = random.Random(seed)  # noqa: S311 - an order, no secret
    for number in range(WARM_UP_ROUNDS + n_rounds):
        for workload in workloads:
            for contestant in shuffler.sample(contestants, len(contestants)):
                on_call(contestant.name)
                time.sleep(pause_s)
                with during:
                    seconds, scores = _turn(contestant, workload, clock)
                rounds.scores[workload.name][contestant.name] = scores
                if number >= WARM_UP_ROUNDS:
                    rounds.seconds[workload.name][contestant.name].append(seconds)
    return rounds


def turns(n_contestants: int, n_workloads: int, n_rounds: int) -> int:
    """How often `run_rounds` calls ``on_call``."""
    return n_contestants * n_workloads * (WARM_UP_ROUNDS + n_rounds)


def summarise(
    workload: Workload, rounds: Rounds, tokens: TokenStatistics, *, ratios: Sequence[tuple[str, str]]
) -> WorkloadSpeed:
    """Medians, agreements, and the ratios of these contestants' seconds, numerator and denominator."""
    seconds, scores = rounds.seconds[workload.name], rounds.scores[workload.name]
    pairs = itertools.combinations(seconds, 2) if tokens.pairs > 1 else ()
    return WorkloadSpeed(
        workload=workload.name,
        tokens=tokens,
        timings=[timing(name, of_rounds, tokens) for name, of_rounds in seconds.items()],
        ratios=[ratio(top, bottom, seconds) for top, bottom in ratios],
        agreements=[{"first": a, "second": b, "kendall_tau": kendall_tau(scores[a], scores[b])} for a, b in pairs],
    )


def timing(contestant: str, seconds: Sequence[float], tokens: TokenStatistics) -> Timing:
    """Median, least and most of the seconds, one a round."""
    median = statistics.median(seconds)
    return Timing(contestant, median, min(seconds), max(seconds), tokens.pairs / median, tokens.total / median)


def ratio(numerator: str, denominator: str, seconds: Mapping[str, Sequence[float]]) -> Ratio:
    """One contestant's seconds over another's, round by round."""
    ratios = [top / bottom for top, bottom in zip(seconds[numerator], seconds[denominator], strict=True)]
    return Ratio(numerator, denominator, statistics.median(ratios), min(ratios), max(ratios))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two score lists: 1 the same order, -1 the reverse, 0 where one is constant."""
    tau = float(kendalltau(first, second).statistic)
    return 0.0 if math.isnan(tau) else tau


def _turn(contestant: Contestant, workload: Workload, clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Seconds a call, and the last call's scores."""
    scores: list[float] = []
    start = clock()
    for _ in range(workload.calls):
        scores = contestant.scores(workload.query, workload.documents)
    return (clock() - start) / workload.calls, scores
