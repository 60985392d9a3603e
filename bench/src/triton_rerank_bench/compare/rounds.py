"""Rounds of turns: times every contestant on every workload, and sums up. Knows nothing of who they are."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from scipy.stats import kendalltau

from triton_rerank_bench.compare.contestants import Contestant
from triton_rerank_bench.errors import PeerError
from triton_rerank_bench.workloads import TokenStatistics, Workload

WARM_UP_ROUNDS = 2
# Thread pools spin for a moment after a call, and would take cores from the next contestant's first milliseconds.
PAUSE_S = 0.1


@dataclass
class Rounds:
    """What was measured: workload -> contestant -> seconds a call, one a round; and the scores of its last call.

    ``failed`` holds peers that gave up in their turn, and why; they have no more turns.
    """

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def complete(self, workload: str) -> int:
        """Leave out who failed, and the round that was interrupted; how many rounds are left."""
        kept = {name: seconds for name, seconds in self.seconds.get(workload, {}).items() if name not in self.failed}
        n_rounds = min(map(len, kept.values()), default=0)
        self.seconds[workload] = {name: seconds[:n_rounds] for name, seconds in kept.items()}
        return n_rounds


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
    rounds: Rounds | None = None,
) -> Rounds:
    """Time all contestants on all workloads, in a new seeded order each round, after `WARM_UP_ROUNDS` uncounted ones.

    ``on_call`` is told who is next before each turn; ``during`` is entered for each, outside its clock. Who wants to
    keep what was measured before an interruption brings the ``rounds`` that are filled.
    """
    rounds = rounds or Rounds()
    for workload in workloads:
        rounds.seconds[workload.name] = {contestant.name: [] for contestant in contestants}
        rounds.scores[workload.name] = {}
    shuffler = random.Random(seed)  # noqa: S311 - an order, no secret
    for number in range(WARM_UP_ROUNDS + n_rounds):
        for workload in workloads:
            for contestant in shuffler.sample(contestants, len(contestants)):
                if contestant.name in rounds.failed:
                    continue
                on_call(contestant.name)
                time.sleep(pause_s)
                try:
                    with during:
                        seconds, scores = _turn(contestant, workload, clock)
                except PeerError as exc:
                    rounds.failed[contestant.name] = str(exc)
                    continue
                rounds.scores[workload.name][contestant.name] = scores
                if number >= WARM_UP_ROUNDS:
                    rounds.seconds[workload.name][contestant.name].append(seconds)
    return rounds


def timing(contestant: str, seconds: Sequence[float], tokens: TokenStatistics) -> Timing:
    """Median, least and most of the seconds, one a round."""
    median = statistics.median(seconds)
    return Timing(contestant, median, min(seconds), max(seconds), tokens.pairs / median, tokens.total / median)


def ratio(numerator: str, denominator: str, seconds: Mapping[str, Sequence[float]]) -> Ratio:
    """One contestant's seconds over another's, round by round."""
    ratios = [top / bottom for top, bottom in zip(seconds[numerator], seconds[denominator], strict=True)]
    return Ratio(numerator, denominator, statistics.median(ratios), min(ratios), max(ratios))


def added_ms(more: str, less: str, seconds: Mapping[str, Sequence[float]]) -> float:
    """Median of one contestant's seconds less another's, paired within rounds, in milliseconds."""
    return statistics.median(1e3 * (a - b) for a, b in zip(seconds[more], seconds[less], strict=True))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two score lists: 1 the same order (as of one score), -1 the reverse, 0 if one is constant."""
    if len(first) == len(second) == 1:
        return 1.0
    tau = float(kendalltau(first, second).statistic)
    return 0.0 if math.isnan(tau) else tau


def _turn(contestant: Contestant, workload: Workload, clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Seconds a call, and the last call's scores."""
    scores: list[float] = []
    start = clock()
    for _ in range(workload.calls):
        scores = contestant.scores(workload.query, workload.documents)
    return (clock() - start) / workload.calls, scores
