"""What a tuning run measured and found, as data. It is filled while it runs, so that what is there can be kept."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from triton_rerank_bench.load.generator import LoadFigures
from triton_rerank_bench.tune.choice import Score, holds, noise_of, operating_point
from triton_rerank_bench.tune.knobs import Setting


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
class OfSize:
    """Calls of so many pairs."""

    pairs: int
    figures: LoadFigures


@dataclass
class Sweep:
    """A repository as it was exported: closed loops by callers and, at the best number of callers, by size of calls."""

    setting: Setting
    levels: list[LoadFigures] = field(default_factory=list)
    sizes: list[OfSize] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One other value of one knob, instead of the best setting until then; no levels if it failed.

    The drift is the speed of the exported setting just before and after, over its median in this run.
    """

    knob: str
    setting: Setting
    instead_of: Setting
    levels: list[LoadFigures]
    drift: float
    kept: bool
    why: str


@dataclass
class Confirmation:
    """The best setting and the exported one in turns, each at its own concurrency, figures of a round each.

    It is confirmed, or not, after two rounds; None before.
    """

    setting: Setting
    exported: list[LoadFigures] = field(default_factory=list)
    best: list[LoadFigures] = field(default_factory=list)
    confirmed: bool | None = None

    @property
    def ratios(self) -> list[float]:
        """Pairs a second of the best over those of the exported one, round by round."""
        return [best.pairs_per_s / old.pairs_per_s for best, old in zip(self.best, self.exported, strict=False)]


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


@dataclass(frozen=True)
class OpenLoop:
    """The answer's setting under calls at random times, at a share of its capacity."""

    share: float
    figures: LoadFigures
    holds: bool


@dataclass
class Tuning:
    """Everything that one run found.

    Attributes:
        wanted: by the user.
        budget_s: seconds that it may take.
        level_s: seconds of one closed loop.
        sweeps: of the exported settings.
        reference: index of the sweep that the search began with.
        repeats: pairs a second of the reference at its operating point, in order.
        trials: in order.
        best: the best setting found.
        confirmation: None if the exported setting is the best.
        open_loops: at shares of the answer's capacity.
        not_tried: values that there was no time for.
        interrupted: the user stopped it.
        elapsed_s: seconds that it took.
        other_load: share of all cores' time that other processes used during the measurements.
    """

    wanted: Wanted
    budget_s: float
    level_s: float
    sweeps: list[Sweep] = field(default_factory=list)
    reference: int = 0
    repeats: list[float] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    best: Setting | None = None
    confirmation: Confirmation | None = None
    open_loops: list[OpenLoop] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)
    interrupted: bool = False
    elapsed_s: float = 0.0
    other_load: float = 0.0

    @property
    def exported(self) -> Setting:
        """The setting that the search began with."""
        return self.sweeps[self.reference].setting

    @property
    def noise(self) -> float:
        """Share by which a setting must be better."""
        return noise_of(self.repeats)

    def levels_of(self, setting: Setting) -> list[LoadFigures]:
        """Closed loops that a sweep or a trial made of a setting."""
        for sweep in self.sweeps:
            if sweep.setting == setting:
                return sweep.levels
        return next((trial.levels for trial in self.trials if trial.setting == setting and trial.levels), [])

    def answer(self) -> Answer | None:
        """The best setting, or the exported one where it was not confirmed; None if nothing was measured.

        Before the search began, it is the best of the exported settings that were measured until then.
        """
        measured = [sweep for sweep in self.sweeps if sweep.levels]
        if not measured:
            return None
        compared = self.confirmation
        if compared is None or compared.confirmed is None:
            setting = self.best or self._best_exported(measured)
            return self._answer(setting, [operating_point(self.levels_of(setting), self.wanted.p99_ms)], None)
        if compared.confirmed:
            return self._answer(compared.setting, compared.best, True)
        return self._answer(self.exported, compared.exported, None)

    def _best_exported(self, measured: list[Sweep]) -> Setting:
        bound, best = self.wanted.p99_ms, measured[0]
        for sweep in measured[1:]:
            new, old = (median_score([operating_point(each.levels, bound)], bound) for each in (sweep, best))
            if new.beats(old, 0.0):
                best = sweep
        return best.setting

    def _answer(self, setting: Setting, rounds: list[LoadFigures], confirmed: bool | None) -> Answer:
        middle = median_score(rounds, self.wanted.p99_ms)
        exported = next(sweep.setting for sweep in self.sweeps if sweep.setting.repository == setting.repository)
        return Answer(
            setting=setting,
            exported=exported,
            concurrency=rounds[0].concurrency or 0,
            rounds=len(rounds),
            calls=sum(figures.calls for figures in rounds),
            pairs_per_s=middle.pairs_per_s,
            tokens_per_s=statistics.median(figures.tokens_per_s for figures in rounds),
            p50_ms=statistics.median(figures.latency.p50_ms for figures in rounds),
            p99_ms=middle.p99_ms,
            worst_p99_ms=max(figures.latency.p99_ms for figures in rounds),
            holds=middle.holds,
            confirmed=confirmed,
        )


def median_score(rounds: list[LoadFigures], p99_ms: float | None) -> Score:
    """Medians of several measurements of one level; calls that failed in any of them count."""
    p99 = statistics.median(figures.latency.p99_ms for figures in rounds)
    no_errors = all(holds(figures, None) for figures in rounds)
    return Score(
        holds=no_errors and (p99_ms is None or p99 <= p99_ms),
        pairs_per_s=statistics.median(figures.pairs_per_s for figures in rounds),
        p99_ms=p99,
    )
