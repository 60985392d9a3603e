"""Finds the fastest setting of a served model that holds a p99, within a time budget.

A full grid is out of the question: eight knobs of three values each are 6,561 settings, and each costs a start of
Triton and some seconds of load; a laptop has minutes. So the search goes along one knob at a time, from the setting
that was exported: the next value of each knob is tried with everything else as in the best setting so far, and kept if
it is better. Most knobs hardly act on each other; the two that do, instances and threads, move together. What such a
search can miss is a pair of values that only help together.

Machines are noisy, and grow warm. So the exported setting keeps its server and is measured before and after every
trial: a trial's figures are taken relative to those two, the scatter of the repeats is the noise, and only a
difference beyond it counts. Of many trials some win by luck, so the best setting is at last held against the exported
one once more, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from triton_rerank import RerankError
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.generator import LoadFigures
from triton_rerank_bench.tune.answer import callers_text, value_text
from triton_rerank_bench.tune.findings import (
    HEADROOM,
    Row,
    Schedule,
    Score,
    Stage,
    Tuning,
    Wanted,
    holds,
    operating_point,
    score,
)
from triton_rerank_bench.tune.knobs import Ground, Setting, candidates
from triton_rerank_bench.tune.servers import Level, SettingServers
from triton_rerank_server import ServerStartError

SIZES = (1, 4, 16, 64, 256)  # pairs a call
OPEN_SHARES = (HEADROOM, 0.6, 0.4)  # of the capacity; the next one only where the one before misses the bound
MOST_CALLERS = 256

_SWEEPS, _SIZES = 0.25, 0.35  # shares of the budget after which no exported setting is swept, or called in other sizes
_FLAT = 1.05  # more callers are tried while they bring more than that
_FAR = 2.0  # times the bound: no more callers
_NEAR = 1.5  # times p99 must be within the bound for a trial with twice the callers
_LOST = 0.9  # a value that came to less is not tried again beside other values
_OTHER_REPOSITORY = 1.05  # one after the other, not in turns, so it must be clearly faster
_STOP_S = 3.0  # of a server
_END_S = 2 * _STOP_S + 2.0  # and drawing
_LEAST_OPEN_CALLS = 20
_MOST_OPEN = 1 / 10  # of the budget


class Tuner:
    """One run over repositories, label -> what bounds its knobs; ``tuning`` holds what was found so far.

    ``on_step`` is told what is being done, and how many seconds are left, about.
    """

    def __init__(
        self,
        bench: SettingServers,
        grounds: Mapping[str, Ground],
        wanted: Wanted,
        schedule: Schedule,
        *,
        pairs_per_call: float,
        on_step: Callable[[str, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bench, self._grounds, self._wanted, self._schedule = bench, grounds, wanted, schedule
        self._on_step, self._clock = on_step, clock
        self._start = clock()
        self._longest_trial_s = 0.0
        self._first_level_s = 0.0  # of the reference, with the start of its server
        self._tried: set[Setting] = set()
        self._lost: set[tuple[str, object]] = set()
        self.tuning = Tuning(wanted, schedule, pairs_per_call)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._start

    def run(self) -> None:
        """Sweep the exported settings, search, confirm, and try the answer in an open loop.

        Raises BenchError, ServerStartError and RerankError where an exported setting cannot be measured.
        """
        for place, (label, on) in enumerate(self._grounds.items(), 1):
            self._sweep(label, on.exported, place / len(self._grounds))
        self._tried.add(self._exported)
        self._bench.keep(self._exported)
        self._search()
        self._confirm()
        self._open_loop()

    # --- the exported settings ----------------------------------------------------------------------------------

    def _sweep(self, label: str, setting: Setting, share: float) -> None:
        levels: list[LoadFigures] = []
        start_s = self._clock()
        while self._goes_on(levels, share):
            callers = 2 ** len(levels)
            self._show(f"{label} as exported, {callers_text(callers)}")
            levels.append(self._closed("exported", setting, callers))
            self._prefer(setting)
            if callers == 1:
                self._first_level_s = max(self._first_level_s, self._clock() - start_s)
        concurrency = self._callers(setting)
        for pairs in SIZES:
            seconds = self._schedule.level_s / 2
            expected_s = seconds + 2 * concurrency * pairs / max(f.pairs_per_s for f in levels)
            if self._fits(expected_s, _SIZES * share):
                self._show(f"{label} as exported, calls of {pairs}")
                figures = self._bench.measure(setting, Level(concurrency, pairs=pairs), seconds, seconds / 3)
                self._keep("sizes", setting, figures, pairs=pairs)

    def _prefer(self, setting: Setting) -> None:
        """Begin the search with this exported setting, if it is clearly the best of those measured."""
        points = (self.tuning.point(each) for each in (setting, self.tuning.exported or setting))
        new, old = (score([point], self._wanted.p99_ms) for point in points)
        if self.tuning.exported is None or new.beats(old, _OTHER_REPOSITORY - 1):
            self.tuning.exported = self.tuning.best = setting

    def _goes_on(self, levels: Sequence[LoadFigures], share: float) -> bool:
        """Until more callers bring nothing more, the bound is far behind, or this repository's time is over."""
        if not levels:
            return True
        last, bound = levels[-1], self._wanted.p99_ms
        too_late = bound is not None and last.latency.p99_ms > _FAR * bound
        flat = len(levels) > 2 and last.pairs_per_s < _FLAT * max(f.pairs_per_s for f in levels[:-2])
        in_time = self._fits(self._level_s(2 * last.latency.p99_ms), _SWEEPS * share)
        return not (last.errors or too_late or flat) and in_time and 2 ** len(levels) <= MOST_CALLERS

    # --- the search ---------------------------------------------------------------------------------------------

    def _search(self) -> None:
        """The next untried value of each knob in turn, so that a short run tries the best guess of each."""
        found = True
        while found:
            found = False
            for knob in self._wanted.knobs:
                setting = next(self._untried(knob), None)
                if setting is None:
                    continue
                if self.elapsed_s + self._trial_s() + self._reserve_s() > self._schedule.budget_s:
                    self.tuning.not_tried = [
                        f"{name} {getattr(other, name)}" for name in self._wanted.knobs for other in self._untried(name)
                    ]
                    return
                self._try(knob, setting)
                found = True

    def _untried(self, knob: str) -> Iterator[Setting]:
        best = self._best
        for setting in candidates(knob, best, self._grounds[best.repository]):
            if setting not in self._tried and (knob, getattr(setting, knob)) not in self._lost:
                yield setting

    def _try(self, knob: str, setting: Setting) -> None:
        self._tried.add(setting)
        start_s = self._clock()
        self._show(f"{knob} {value_text(getattr(setting, knob))}")
        if not self.tuning.repeats:
            self._again()
        try:
            levels = [self._measure(setting, Level(callers)) for callers in self._callers_to_try()]
        except (ServerStartError, RerankError, BenchError) as exc:
            self._keep("knobs", setting, None, knob=knob, why=f"failed: {str(exc).splitlines()[0]}")
            return
        self._again()
        repeats = self.tuning.repeats
        drift = statistics.fmean(repeats[-2:]) / statistics.median(repeats)
        bound, old = self._wanted.p99_ms, self._score_of(self._best)
        new = score([operating_point(levels, bound)], bound, drift)
        kept = new.beats(old, self.tuning.noise)
        if old.holds and new.pairs_per_s < _LOST * old.pairs_per_s:
            self._lost.add((knob, getattr(setting, knob)))
        for figures in levels:
            self._keep("knobs", setting, figures, knob=knob, drift=drift, kept=kept, why=new.beside(old))
        if kept:
            self.tuning.best = setting
        self._longest_trial_s = max(self._longest_trial_s, self._clock() - start_s)

    def _score_of(self, setting: Setting) -> Score:
        """Of the best setting so far, its machine's drift taken out."""
        point = self.tuning.point(setting)
        if setting == self._exported:
            drift = point.pairs_per_s / statistics.median(self.tuning.repeats)
        else:
            drift = next(row.drift for row in self.tuning.rows if row.stage == "knobs" and row.setting == setting)
        return score([point], self._wanted.p99_ms, drift)

    def _again(self) -> None:
        """The exported setting once more, at its operating point."""
        self._closed("again", self._exported, self._callers(self._exported))

    def _callers_to_try(self) -> list[int]:
        """The best setting's, and twice as many if the bound leaves room for them."""
        point, bound = self.tuning.point(self._best), self._wanted.p99_ms
        callers = point.concurrency or 1
        room = bound is None or _NEAR * point.latency.p99_ms <= bound
        return [callers, 2 * callers] if room and 2 * callers <= MOST_CALLERS else [callers]

    # --- the answer ---------------------------------------------------------------------------------------------

    def _confirm(self) -> None:
        best, exported, tuning = self._best, self._exported, self.tuning
        if best == exported:
            return
        for number in range(self._schedule.rounds):
            if number > 1 and not self._fits(2 * self._level_s(tuning.point(exported).latency.p99_ms) + _END_S, 1.0):
                break
            for setting in (exported, best) if number % 2 == 0 else (best, exported):
                self._show(f"confirmation, round {number + 1} of {self._schedule.rounds}")
                self._closed("confirmation", setting, self._callers(setting))
        rounds = (tuning.of("confirmation", setting=setting) for setting in (best, exported))
        new, old = (score(each, self._wanted.p99_ms) for each in rounds)
        always = not (new.holds and old.holds) or min(tuning.ratios) > 1
        tuning.confirmed = new.beats(old, tuning.noise) and always

    def _open_loop(self) -> None:
        answer = self.tuning.answer()
        assert answer is not None  # there is a sweep
        for share in OPEN_SHARES:
            rate = share * answer.pairs_per_s / self.tuning.pairs_per_call
            seconds = self._open_s(rate)
            if share != OPEN_SHARES[0] and not self._fits(seconds + self._schedule.warm_up_s + _END_S, 1.0):
                return
            seconds = max(2 / rate, min(seconds, self._schedule.budget_s - self.elapsed_s - _END_S))
            self._show(f"open loop at {share:.0%} of the capacity")
            level = Level(0, rate=rate)
            figures = self._bench.measure(answer.setting, level, seconds, self._schedule.warm_up_s)
            self._keep("open loop", answer.setting, figures)
            if holds(figures, self._wanted.p99_ms) or not answer.holds:
                return

    # --- measuring, and its time --------------------------------------------------------------------------------

    def _closed(self, stage: Stage, setting: Setting, callers: int) -> LoadFigures:
        figures = self._measure(setting, Level(callers))
        if stage == "exported" and not figures.pairs_per_s:
            failed = f"every call failed ({figures.errors}); nothing can be tuned"
            raise BenchError(f"{setting.repository} as exported: {failed}")
        self._keep(stage, setting, figures)
        return figures

    def _measure(self, setting: Setting, level: Level) -> LoadFigures:
        return self._bench.measure(setting, level, self._schedule.level_s, self._schedule.warm_up_s)

    def _keep(self, stage: Stage, setting: Setting, figures: LoadFigures | None, **more: Any) -> None:
        self.tuning.rows.append(Row(stage, setting, figures, **more))

    def _level_s(self, latency_ms: float) -> float:
        return self._schedule.level_s + self._schedule.warm_up_s + latency_ms / 1e3 + 0.5

    def _trial_s(self) -> float:
        """What a trial may take: as the longest so far, or a stop, a start, its levels and the exported one's."""
        level_s = self._level_s(self.tuning.point(self._best).latency.p99_ms)
        return self._longest_trial_s or _STOP_S + self._first_level_s + len(self._callers_to_try()) * level_s

    def _reserve_s(self) -> float:
        """For the confirmation, the open loop and the end."""
        point = self.tuning.point(self._exported)
        open_s = self._open_s(HEADROOM * point.pairs_per_s / self.tuning.pairs_per_call)
        return self._first_level_s + 2 * self._schedule.rounds * self._level_s(point.latency.p99_ms) + open_s + _END_S

    def _open_s(self, rate: float) -> float:
        enough_s = max(2 * self._schedule.level_s, _LEAST_OPEN_CALLS / rate)
        return min(enough_s, _MOST_OPEN * self._schedule.budget_s)

    def _fits(self, seconds: float, share: float) -> bool:
        return self.elapsed_s + seconds <= share * self._schedule.budget_s

    def _show(self, doing: str) -> None:
        left_s = self._schedule.budget_s - self.elapsed_s
        if self._tried:  # the sweeps are over
            waiting = sum(1 for knob in self._wanted.knobs for _ in self._untried(knob))
            left_s = min(left_s, waiting * self._trial_s() + self._reserve_s())
        self._on_step(doing, max(0.0, left_s))

    def _callers(self, setting: Setting) -> int:
        return self.tuning.point(setting).concurrency or 1

    @property
    def _best(self) -> Setting:
        assert self.tuning.best is not None  # the search begins with one
        return self.tuning.best

    @property
    def _exported(self) -> Setting:
        assert self.tuning.exported is not None  # likewise
        return self.tuning.exported
