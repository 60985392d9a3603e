"""Computes micro-batches over the rows of all requests that wait, and answers each when its last row is done.

Knows nothing of Triton: a request brings a `Ticket`. One thread computes; any may put.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .engine import Engine, Rows, check, flattened
from .schedule import MOST_WAITING_TOKENS, Schedule, ScheduleFullError, Waiting
from .session import EngineError, Ids

_log = logging.getLogger(__name__)
_CANCELLED = "cancelled by its caller"
_LOOK_S = 1.0  # all that wait are asked whether their callers are gone; Triton takes some 30 us to say


class OverloadError(EngineError):
    """Too much waits, or a request waited too long; the server answers UNAVAILABLE, and clients come again."""


class CancelledError(EngineError):
    """The caller went away before its rows were computed."""


class Ticket(Protocol):
    """Where the answer goes; exactly one of `done` and `failed` is called, once."""

    def done(self, logits: npt.NDArray[np.float32]) -> None:
        """Give logits ``(n, 1)``."""
        ...

    def failed(self, error: Exception) -> None:
        """Give the error of this request."""
        ...

    def is_cancelled(self) -> bool:
        """The caller is gone."""
        ...


@dataclass(eq=False)
class _Request:
    rows: Rows
    ticket: Ticket
    came_s: float
    timeout_s: float
    logits: npt.NDArray[np.float32] = field(init=False)
    left: int = field(init=False)  # rows without a logit
    taken: bool = False  # a row of it

    def __post_init__(self) -> None:
        self.left = len(self.rows.lengths)
        self.logits = np.empty((self.left, 1), dtype=np.float32)


_Places = dict[Waiting, tuple[_Request, list[int]]]  # the rows of a micro-batch, by the requests that they are of


class Continuous:
    """One engine, one thread, and the requests that wait for them.

    Args:
        engine: computes.
        most_tokens: that may wait.
        most_requests: that may wait; 0 means no bound.
    """

    def __init__(self, engine: Engine, *, most_tokens: int = MOST_WAITING_TOKENS, most_requests: int = 0) -> None:
        self._engine = engine
        self._schedule = Schedule(
            engine.micro_batch_tokens, engine.batch_cost_tokens, most_tokens, most_requests, flat=engine.is_flat
        )
        self._requests: dict[Waiting, _Request] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._waited_s = 0.0
        self._looked_s = 0.0
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    def is_idle(self) -> bool:
        """No request waits for rows of it to be taken."""
        with self._changed:
            return not len(self._schedule)

    def put(
        self, inputs: Mapping[str, Ids], ticket: Ticket, *, timeout_s: float = math.inf, bounded: bool = True
    ) -> None:
        """Let a request wait; its ticket gets the answer, from another thread as a rule.

        Args:
            inputs: as `Engine.logits` takes them; kept, not copied.
            ticket: for the answer.
            timeout_s: seconds until it is refused if none of its rows was begun.
            bounded: refuse it if too much waits already.
        """
        try:
            check(inputs, self._engine.input_names)
            request = _Request(Rows(inputs), ticket, time.monotonic(), timeout_s)
            lengths = request.rows.padded(self._engine.length_step).tolist()
            with self._changed:
                try:
                    self._requests[self._schedule.add(lengths, bounded=bounded)] = request
                except ScheduleFullError as exc:
                    raise OverloadError(f"Exceeds maximum queue size: {exc}") from exc
                self._changed.notify()
        except Exception as exc:  # noqa: BLE001 - the one request gets it, whatever it is
            ticket.failed(exc)

    def waits(self) -> tuple[float, int, int]:
        """Seconds that requests waited, in all; pairs that wait now, and their tokens."""
        with self._changed:
            return self._waited_s, sum(len(waiting.rows) for waiting in self._schedule), self._schedule.tokens

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not len(self._schedule) and not self._closing:
                    self._changed.wait()
                if not len(self._schedule):
                    return
                leaving = self._drop_leaving()
                places: _Places = {}
                for waiting, row in self._schedule.take():
                    places.setdefault(waiting, (self._requests[waiting], []))[1].append(row)
                self._count([*(request for request, _ in places.values()), *(request for request, _ in leaving)])
            for request, error in leaving:
                _tell(request.ticket.failed, error)
            self._compute(self._still_wanted(places))

    def _count(self, requests: Sequence[_Request]) -> None:
        now_s = time.monotonic()
        for request in requests:
            if not request.taken:
                request.taken = True
                self._waited_s += now_s - request.came_s

    def _drop_leaving(self) -> list[tuple[_Request, Exception]]:
        now_s = time.monotonic()
        if looks := now_s > self._looked_s + _LOOK_S:
            self._looked_s = now_s
        leaving: list[tuple[_Request, Exception]] = []
        for waiting in list(self._schedule):
            request = self._requests[waiting]
            if looks and request.ticket.is_cancelled():
                leaving.append((request, CancelledError(_CANCELLED)))
            elif not waiting.begun and now_s > request.came_s + request.timeout_s:
                leaving.append((request, OverloadError("Request timeout expired")))
            else:
                continue
            self._forget(waiting)
        return leaving

    def _forget(self, waiting: Waiting) -> None:
        self._schedule.drop(waiting)
        del self._requests[waiting]

    def _still_wanted(self, places: _Places) -> _Places:
        """Without the requests whose callers are gone; these are told, and forgotten."""
        gone = [waiting for waiting, (request, _) in places.items() if request.ticket.is_cancelled()]
        for waiting in gone:
            with self._changed:
                self._forget(waiting)
            _tell(places.pop(waiting)[0].ticket.failed, CancelledError(_CANCELLED))
        return places

    def _compute(self, places: _Places) -> None:
        if not places:
            return
        try:
            self._score(list(places.values()))
        except Exception:  # noqa: BLE001 - each request tells its own
            self._one_by_one(places)
        self._answer(places)

    def _one_by_one(self, places: _Places) -> None:
        for waiting, (request, rows) in places.items():
            try:
                self._score([(request, rows)])
            except Exception as exc:  # noqa: BLE001 - the one request gets it, whatever it is
                with self._changed:
                    self._forget(waiting)
                _tell(request.ticket.failed, exc)

    def _score(self, parts: Sequence[tuple[_Request, list[int]]]) -> None:
        logits = self._engine.run(self._feed([(request.rows, rows) for request, rows in parts]))
        start = 0
        for request, rows in parts:
            request.logits[rows] = logits[start : start + len(rows)]
            start += len(rows)

    def _feed(self, parts: Sequence[tuple[Rows, list[int]]]) -> dict[str, Any]:
        names = self._engine.input_names
        if self._engine.is_flat:
            return flattened(parts, names)
        width = max(int(rows.lengths[picked].max()) for rows, picked in parts)
        width = -(-width // self._engine.length_step) * self._engine.length_step
        return {
            name: np.concatenate([_cut(rows.inputs[name], picked, width) for rows, picked in parts]) for name in names
        }

    def _answer(self, places: _Places) -> None:
        for waiting, (request, rows) in places.items():
            if waiting not in self._requests:
                continue  # it failed
            request.left -= len(rows)
            if not request.left:
                with self._changed:
                    del self._requests[waiting]
                _tell(request.ticket.done, request.logits)


def _tell(answer: Callable[[Any], None], what: Any) -> None:
    """An answer that cannot be given must not end the thread that computes for all others."""
    try:
        answer(what)
    except Exception:  # noqa: BLE001 - whatever the way to the caller raises; it is logged
        _log.exception("an answer could not be given")


def _cut(array: Ids, rows: list[int], width: int) -> Ids:
    cut = array[rows, :width]
    missing = width - cut.shape[1]
    return np.pad(cut, ((0, 0), (0, missing))) if missing else cut
