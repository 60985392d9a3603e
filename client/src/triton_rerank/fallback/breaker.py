"""Health of scorers: when one is asked, skipped and tried again, and who answers at present. Pure; clock injected.

A `Breaker` is the health of one scorer:

    closed ──failures in a row──▶ cooling down ──time is over, one call tries──▶ on trial ──answer──▶ closed
                                       ▲                                            │
                                       └──────── failure: twice as long as before ──┘

Not locked: the chain that owns them holds its lock around every method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from triton_rerank.core.deadline import Clock


@dataclass(frozen=True, slots=True)
class ScorerCounters:
    """What a chain did with one scorer since it was made.

    ``calls`` less ``answers`` less ``failures`` are under way, were cancelled, or ended with an error that is the
    caller's.

    Attributes:
        calls: times it was asked.
        answers: times it answered.
        failures: errors after which the next scorer was asked.
        skips: times it was passed over, because it kept failing or no time was left.
        trials: calls that tried it after a cool-down.
        cooling_s: seconds until it is tried again; 0.0 if it is not being skipped.
    """

    calls: int
    answers: int
    failures: int
    skips: int
    trials: int
    cooling_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Permit:
    """Leave to ask once; made before it is asked for, so that it can be released whatever happens.

    Attributes:
        era: changes of state that the breaker had seen; a failure that began in another era says nothing of now.
    """

    era: int


class Breaker:
    """Whether one scorer is asked, and what came of it.

    Args:
        failures: so many in a row start a cool-down.
        cool_down_s: seconds of the first one.
        max_cool_down_s: seconds at most; each trial that fails doubles the last one.
        clock: monotonic seconds.
    """

    def __init__(self, *, failures: int, cool_down_s: float, max_cool_down_s: float, clock: Clock) -> None:
        self._limit = failures
        self._first_s = cool_down_s
        self._max_s = max_cool_down_s
        self._clock = clock
        self._cool_down_s = cool_down_s
        self._in_a_row = 0
        self._era = 0
        self._until: float | None = None  # None: closed
        self._trial: Permit | None = None
        self._last_error = ""
        self._said = ""  # the refusal that was said last
        self._said_at = -math.inf
        self._calls = self._answers = self._failures = self._skips = self._trials = 0

    def permit(self) -> Permit:
        """A permit that has yet to be admitted."""
        return Permit(self._era)

    def admits(self) -> bool:
        """True if a call may ask now: it is closed, or its cool-down is over and nobody tries it yet."""
        return self._until is None or (self._clock() >= self._until and self._trial is None)

    def admit(self, permit: Permit, *, anyway: bool = False) -> bool:
        """Let the call ask, as its trial where it cools down; False if it is to be skipped.

        Args:
            permit: the call's.
            anyway: let it ask in any case; it was skipped before, and now is not.
        """
        self._skips -= anyway
        if not self.admits():
            self._calls += anyway
            self._skips += not anyway
            return anyway
        self._calls += 1
        if self._until is not None:
            self._trial = permit
            self._trials += 1
        return True

    def passed_over(self) -> None:
        """It was not asked for want of time."""
        self._skips += 1

    def cooling_s(self) -> float:
        """Seconds until it is tried again; 0 if it is closed, and below 0 while the trial is late."""
        return 0.0 if self._until is None else self._until - self._clock()

    def why_skipped(self) -> str:
        """For a person to read."""
        left_s = self.cooling_s()
        when = f"it is tried again in {left_s:.1f} s" if left_s > 0 else "another call is trying it"
        return f"it kept failing, last with {self._last_error}; {when}"

    def succeeded(self) -> None:
        """It answered: closed, whoever asked, since an answer shows that it is there now."""
        self._answers += 1
        if self._until is not None:
            self._era += 1
        if self._clock() - self._said_at >= self._first_s:  # else one that refuses every other call is a line for each
            self._said = ""
        self._in_a_row = 0
        self._cool_down_s = self._first_s
        self._until = None
        self._trial = None

    def failed(self, permit: Permit, error: str, *, tells: bool = True) -> None:
        """It failed. While it cools down only the trial's failure tells, else a load would double it at once.

        Args:
            permit: the call's.
            error: name of the error's class.
            tells: False if the failure says nothing of the scorer's health.
        """
        self._failures += 1
        self._last_error = error
        if tells and permit is self._trial:
            self._cool_down_s = min(2 * self._cool_down_s, self._max_s)
            self._cool()
        elif tells and self._until is None and permit.era == self._era:
            self._in_a_row += 1
            if self._in_a_row >= self._limit:
                self._era += 1
                self._cool()

    def is_news(self, error: str) -> bool:
        """True if this refusal is to be said: the first, another than before, or after answers of some time.

        Args:
            error: name of the error's class.
        """
        news = error != self._said
        if news:
            self._said, self._said_at = error, self._clock()
        return news

    def release(self, permit: Permit) -> None:
        """The call is over, also without a word on the scorer's health; if it was the trial, another may be."""
        if permit is self._trial:
            self._trial = None

    def counters(self) -> ScorerCounters:
        """A snapshot."""
        cooling_s = max(0.0, self.cooling_s())
        return ScorerCounters(self._calls, self._answers, self._failures, self._skips, self._trials, cooling_s)

    def _cool(self) -> None:
        self._until = self._clock() + self._cool_down_s
        self._trial = None


class Front:
    """Which position of a chain answers, as far as it has been said; so that a change is said once.

    A scorer that fails every other call would make a change of each: so a return to an earlier position is believed
    ``settle_s`` after the last change.

    Args:
        settle_s: seconds.
        clock: monotonic seconds.
    """

    def __init__(self, *, settle_s: float, clock: Clock) -> None:
        self.position = 0
        self.changes = 0
        self._settle_s = settle_s
        self._clock = clock
        self._changed_at = -math.inf

    def move(self, position: int, *, since: int) -> bool:
        """True if this answer is a change.

        Args:
            position: who answered.
            since: ``changes`` when the call began; one that began before the last change says nothing of now.
        """
        now = self._clock()
        soon = position < self.position and now - self._changed_at < self._settle_s
        if position == self.position or since != self.changes or soon:
            return False
        self.position, self._changed_at = position, now
        self.changes += 1
        return True
