"""Threads that ask again and again, and how long every call took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """One call.

    Attributes:
        began_s: monotonic seconds.
        took_s: seconds.
        result: what it returned, None if it raised.
        error: what it raised.
    """

    began_s: float
    took_s: float
    result: Any
    error: Exception | None


class Load:
    """Runs ``ask`` in threads from the start of the block to its end.

    Args:
        ask: one call; its argument is the number of the thread.
        threads: how many.
        pause_s: between two calls of a thread.
    """

    def __init__(self, ask: Callable[[int], Any], *, threads: int = 16, pause_s: float = 0.0) -> None:
        self.samples: list[Sample] = []
        self._ask = ask
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"

    @property
    def errors(self) -> list[Exception]:
        return [sample.error for sample in self.samples if sample.error is not None]

    def wait_for(self, calls: int, timeout_s: float = 30.0) -> None:
        """Until so many more have ended."""
        goal, end = len(self.samples) + calls, time.monotonic() + timeout_s
        while len(self.samples) < goal:
            assert time.monotonic() < end, f"{len(self.samples)} of {goal} calls ended in {timeout_s:g} s"
            time.sleep(0.01)

    def between(self, start_s: float, end_s: float) -> list[Sample]:
        """Calls that began then."""
        return [sample for sample in list(self.samples) if start_s <= sample.began_s < end_s]

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            self.samples.append(timed(lambda: self._ask(number)))
            if self._pause_s:
                self._stop.wait(self._pause_s)


class BusyClock:
    """How late this process wakes its threads: what a busy machine adds to every call, whoever makes it.

    A thread sleeps for 10 ms again and again while the block runs, and notes what each sleep took beyond that.
    """

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []  # (when it woke, how late), seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BusyClock:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def late_s(self, start_s: float, end_s: float) -> float:
        """Seconds of the latest waking between two monotonic times."""
        return max((late for when, late in list(self._late) if start_s <= when <= end_s + late), default=0.0)

    def own_s(self, began_s: float) -> float:
        """Seconds since a monotonic time, less those for which the machine kept a thread that may run waiting."""
        now_s = time.monotonic()
        return now_s - began_s - sum(late for when, late in list(self._late) if began_s <= when - late)

    def _run(self, every_s: float = 0.01) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            time.sleep(every_s)
            woke_s = time.monotonic()
            self._late.append((woke_s, woke_s - began_s - every_s))


def timed(call: Callable[[], Any]) -> Sample:
    """One call, whatever comes of it."""
    began_s = time.monotonic()
    try:
        result = call()
    except Exception as exc:  # noqa: BLE001 - a test looks at it
        return Sample(began_s, time.monotonic() - began_s, None, exc)
    return Sample(began_s, time.monotonic() - began_s, result, None)


def at_once(call: Callable[[int], Any], threads: int) -> list[Sample]:
    """One call in each of so many threads, begun together."""
    samples: list[Sample] = []
    gate = threading.Barrier(threads)

    def run(number: int) -> None:
        gate.wait(timeout=30)
        samples.append(timed(lambda: call(number)))

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=60)
    assert len(samples) == threads, "a call hangs"
    return samples


def percentile_ms(samples: Sequence[Sample], percent: float) -> float:
    """Milliseconds that so many percent of the calls did not exceed."""
    return float(np.percentile([sample.took_s for sample in samples], percent)) * 1e3
