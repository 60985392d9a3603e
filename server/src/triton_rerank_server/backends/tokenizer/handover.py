"""Takes what Triton brings at once, and works on it in a thread of its own. Knows nothing of Triton."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

MOST_WAITING = 2  # times what is worked on together; what comes after waits in Triton's queue, which refuses it


class Rows(Protocol):
    """A request."""

    @property
    def rows(self) -> int:
        """How many pairs it has."""
        ...


T = TypeVar("T", bound=Rows)


class Handover(Generic[T]):
    """One thread, and the requests that wait for it.

    While an instance executes, Triton 2.51 overlooks a request that comes to a queue with bounds: its batcher sleeps
    until the next request comes, or for half a second. So an execution only hands its requests over.

    Args:
        work: answers all the requests that it is given, and raises nothing.
        most_rows: pairs of all requests that it is given together, unless one execution brought more.
    """

    def __init__(self, work: Callable[[Sequence[T]], None], *, most_rows: int) -> None:
        self._work = work
        self._most_rows = most_rows
        self._waiting: deque[Sequence[T]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tokenizer", daemon=True)
        self._thread.start()

    def put(self, requests: Sequence[T]) -> None:
        """Hand over the requests of one execution; waits where `MOST_WAITING` times ``most_rows`` pairs wait."""
        with self._changed:
            self._changed.wait_for(lambda: sum(map(_rows, self._waiting)) < MOST_WAITING * self._most_rows)
            self._waiting.append(requests)
            self._changed.notify_all()

    def close(self) -> None:
        """Work on what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while requests := self._take():
            self._work(requests)

    def _take(self) -> list[T]:
        """What waited first, and what fits beside it; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            taken: list[T] = []
            while self._waiting and (not taken or _rows(taken) + _rows(self._waiting[0]) <= self._most_rows):
                taken += self._waiting.popleft()
            self._changed.notify_all()
            return taken


def _rows(requests: Sequence[Rows]) -> int:
    return sum(request.rows for request in requests)
