"""Steps within minutes, in the order of their worth: what each found is written before the next begins."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from triton_rerank_bench.errors import BenchError

LEAST_S = 30.0  # no step begins with less than that left
ENDING_S = 15.0  # before the end a running step is cut, so that what it started can end


class Steps:
    """Runs one step after the other; one that fails, or would begin too late, is told and left out.

    Attributes:
        left_out: what was not measured, and why.
        seconds: that each step took, by its name.
    """

    def __init__(self, minutes: float, write: Callable[[], object], console: Console) -> None:
        self.left_out: list[str] = []
        self.seconds: dict[str, float] = {}
        self._minutes, self._write, self._console = minutes, write, console
        self._end = time.monotonic() + 60 * minutes

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Do a step, unless it is too late for it, and have what is known written; Ctrl-C passes."""
        begin = time.monotonic()
        if self._end - begin < LEAST_S:
            self._leave_out(f"{name}: of {self._minutes:g} minutes less than {LEAST_S:g} s are left")
            return
        self._console.print(f"{name} …", highlight=False)
        try:
            with within(self._end - ENDING_S - begin):
                work()
        except Exception as exc:  # noqa: BLE001 - whatever fails on an unknown device, the next step may not
            self._leave_out(f"{name}: {exc}")
        self.seconds[name] = time.monotonic() - begin
        self._write()

    def _leave_out(self, why: str) -> None:
        self.left_out.append(why)
        self._console.print(f"left out: {why}", style="red", highlight=False, markup=False)


class _OverError(KeyboardInterrupt):
    """As Ctrl-C, so that nothing on the way takes it for a fault of its own."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Cut what runs in the main thread after so many seconds; raises BenchError then."""

    def end(*_: object) -> None:
        """In the main thread, wherever it is."""
        raise _OverError

    handler, timer = signal.signal(signal.SIGALRM, end), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _OverError:
        raise BenchError("was cut, since the minutes are over; the report keeps what it had found") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
