"""What a tuning run measured, as rows, and what they say: which setting is better, in spite of noise, and the answer.

The rows are filled while it runs, so that what is there can be kept.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from triton_rerank_bench.load.generator import LoadFigures
from triton_rerank_bench.tune.knobs import Setting

HEADROOM = 0.8  # of a machine's capacity may be used: a server at its capacity has a queue without end
LEAST_NOISE = 0.02  # no difference below it counts, however calm the machine seemed
ALIKE = 0.97  # of the highest throughput is as good, if fewer callers reach it
_NOISE_FACTOR = 3.0

Stage = Literal["exported", "sizes", "again", "knobs", "confirmation", "open loop"]


@dataclass(frozen=True)
class Schedule:
    """How the time is spent: seconds in all, of one closed loop, and before each; rounds of the confirmation."""

    budget_s: float
    level_s: float
    warm_up_s: float
    rounds: int

    @classmethod
    def of(cls, budget_s: float) -> Schedule:
        """More time means longer measurements at first, and more settings only then."""
        level_s = min(10.0, max(0.5, budget_s / 60))
        return cls(budget_s, level_s, level_s / 3, rounds=2 if budget_s < 600 else 4)


@dataclass(frozen=True)
class Wanted:
    """What the user asks for: a bound of a call's latency, pairs a second of all machines together, knobs to try."""

    p99_ms: float | None
    rate: float | None
    knobs: tuple[str, ...]


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

    def beside(self, other: Score) -> str:
        """What it came to beside the best setting so far, in a few words."""
        if self.holds != other.holds:
            return "holds the p99, the best so far did not" if self.holds else "does not hold the p99"
        if self.holds:
            return f"{self.pairs_per_s / other.pairs_per_s - 1:+.1%} pairs/s"
        return f"{self.p99_ms / other.p99_ms - 1:+.1%} p99"


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        stage: "exported": a repository as it was exported, by callers; "sizes": the same, by pairs a call; "again": the
            setting that the search began with, once more; "knobs": another value of one knob; "confirmation": the best
            setting and the exported one in turns; "open loop": the answer under calls at random times.
        setting: that was served.
        figures: None where it could not be measured.
        pairs: of each call; None for the workload's lists.
        knob: whose value was tried.
        drift: the machine's speed meanwhile: that of "again" just before and after, over its median in this run.
        kept: it was better than the best setting until then.
        why: of that, or the failure.
    """

    stage: Stage
    setting: Setting
    figures: LoadFigures | None
    pairs: int | None = None
    knob: str | None = None
    drift: float = 1.0
    kept: bool = False
    why: str = ""


@dataclass(frozen=True)
class Answer:
    """The setting to take, what its repository was exported with, and medians of so many rounds.

    It holds where p99 is within the bound and no call failed. It is confirmed where it was faster than the exported
    setting once more, beside it; None if it was not compared, or is that one.
    """

    setting: Setting
    exported: Setting
    concurrency: int
    rounds: int
    calls: int
    pairs_per_s: float
    tokens_per_s: float
    p50_ms: float
    p99_ms: float
    worst_p99_ms: float
    holds: bool
    confirmed: bool | None


@dataclass
class Tuning:
    """Everything that one run found.

    Attributes:
        wanted: by the user.
        schedule: of the run.
        pairs_per_call: mean of the workload's lists.
        rows: in order.
        exported: the exported setting that the search begins with, the best of those that were measured; None before.
        best: the best setting found; None likewise.
        confirmed: the best setting was faster beside the exported one, once more; None if they were not compared.
        not_tried: values that there was no time for.
        interrupted: the user stopped it.
        elapsed_s: seconds that it took.
        other_load: share of all cores' time that other processes used during the measurements.
    """

    wanted: Wanted
    schedule: Schedule
    pairs_per_call: float
    rows: list[Row] = field(default_factory=list)
    exported: Setting | None = None
    best: Setting | None = None
    confirmed: bool | None = None
    not_tried: list[str] = field(default_factory=list)
    interrupted: bool = False
    elapsed_s: float = 0.0
    other_load: float = 0.0

    def of(self, *stages: Stage, setting: Setting | None = None) -> list[LoadFigures]:
        """What was measured in these stages, of one setting or of all."""
        rows = (row for row in self.rows if row.stage in stages and (setting is None or row.setting == setting))
        return [row.figures for row in rows if row.figures]

    def swept(self) -> list[Setting]:
        """Exported settings that were measured."""
        return list(dict.fromkeys(row.setting for row in self.rows if row.stage == "exported"))

    def point(self, setting: Setting) -> LoadFigures:
        """Where to run a setting, of the callers that were tried with it."""
        return operating_point(self.of("exported", "knobs", setting=setting), self.wanted.p99_ms)

    @property
    def repeats(self) -> list[float]:
        """Pairs a second of the setting that the search began with at its operating point, in order."""
        again = [figures.pairs_per_s for figures in self.of("again")]
        return [self.point(self.exported).pairs_per_s, *again] if self.exported and again else []

    @property
    def noise(self) -> float:
        """Share by which a setting must be better."""
        return noise_of(self.repeats)

    @property
    def ratios(self) -> list[float]:
        """Of the confirmation: pairs a second of the best over those of the exported one, round by round."""
        if self.best == self.exported:
            return []
        best, old = (self.of("confirmation", setting=setting) for setting in (self.best, self.exported))
        return [new.pairs_per_s / before.pairs_per_s for new, before in zip(best, old, strict=False)]

    def answer(self) -> Answer | None:
        """The best setting, or the exported one where it was not confirmed; None if nothing was measured."""
        setting = self.exported if self.confirmed is False else self.best
        if setting is None:
            return None
        compared = self.confirmed is not None
        rounds = self.of("confirmation", setting=setting) if compared else [self.point(setting)]
        middle = score(rounds, self.wanted.p99_ms)
        return Answer(
            setting=setting,
            exported=next(each for each in self.swept() if each.repository == setting.repository),
            concurrency=rounds[0].concurrency or 0,
            rounds=len(rounds),
            calls=sum(figures.calls for figures in rounds),
            pairs_per_s=middle.pairs_per_s,
            tokens_per_s=statistics.median(figures.tokens_per_s for figures in rounds),
            p50_ms=statistics.median(figures.latency.p50_ms for figures in rounds),
            p99_ms=middle.p99_ms,
            worst_p99_ms=max(figures.latency.p99_ms for figures in rounds),
            holds=middle.holds,
            confirmed=self.confirmed or None,
        )


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


def score(rounds: Sequence[LoadFigures], p99_ms: float | None, drift: float = 1.0) -> Score:
    """Judge measurements of one level by their medians; calls that failed in any of them count.

    They are taken back to the machine's usual speed where it was ``drift`` times faster meanwhile.
    """
    p99 = statistics.median(figures.latency.p99_ms for figures in rounds)
    within = all(holds(figures, None) for figures in rounds) and (p99_ms is None or p99 <= p99_ms)
    return Score(within, statistics.median(figures.pairs_per_s for figures in rounds) / drift, p99 * drift)


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
