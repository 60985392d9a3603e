"""One deadline for a whole call. The clock is injected."""

from __future__ import annotations

import time
from collections.abc import Callable

from triton_rerank.errors import DeadlineExceededError

Clock = Callable[[], float]


class Deadline:
    """What is left of ``timeout_s``.

    Args:
        timeout_s: seconds from now.
        clock: monotonic seconds.
    """

    def __init__(self, timeout_s: float, *, clock: Clock = time.monotonic) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._start = clock()

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def part(self, share: float) -> Deadline:
        """A deadline of its own for a share of what is left.

        Args:
            share: above 0, at most 1.

        Raises:
            DeadlineExceededError: nothing is left.
        """
        return Deadline(share * self.left_s(doing="the next attempt"), clock=self._clock)

    def left_s(self, *, doing: str) -> float:
        """Seconds left.

        Args:
            doing: what the time is wanted for; named in the error.

        Raises:
            DeadlineExceededError: none are.
        """
        left = self.timeout_s - self.elapsed_s()
        if left <= 0:
            raise self.passed(doing)
        return left

    def passed(self, doing: str) -> DeadlineExceededError:
        """The error that says that no time was left for something."""
        return DeadlineExceededError(f"timeout_s of {self.timeout_s:g} s passed before {doing}; raise it, or ask less")
