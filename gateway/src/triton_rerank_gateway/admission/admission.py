"""Waiting for one's turn: `FairQueue` with a clock and an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from triton_rerank_gateway.admission.queueing import Cost, FairQueue, Ticket
from triton_rerank_gateway.failures import GatewayError

_WINDOW_S = 10.0  # over which the drain rate is measured
_LONGEST_S = 60  # Cohere's clients do not wait longer, whatever they are told


class DrainRate:
    """Pairs a second that were finished of late.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done: deque[tuple[float, int]] = deque()
        self._began_s = clock()

    def finished(self, pairs: int) -> None:
        """Count a request that is done."""
        self._done.append((self._clock(), pairs))
        self._forget()

    def per_s(self) -> float:
        """Pairs a second, 0 if none were finished."""
        self._forget()
        span_s = max(0.1, min(_WINDOW_S, self._clock() - self._began_s))
        return sum(pairs for _, pairs in self._done) / span_s

    def seconds_for(self, pairs: int) -> int:
        """Whole seconds in which so many pairs will be done."""
        rate = self.per_s()
        return min(_LONGEST_S, max(1, math.ceil(pairs / rate))) if rate > 0 else 1

    def _forget(self) -> None:
        while self._done and self._done[0][0] < self._clock() - _WINDOW_S:
            self._done.popleft()


class Admission:
    """Lets requests through in turn, or refuses them at once. Lives in one event loop.

    Args:
        flight: most that is in flight.
        room: most that waits.
        max_wait_s: a request that waited so long is refused, whatever its deadline.
        clock: monotonic seconds.
    """

    def __init__(
        self, flight: Cost, room: Cost, *, max_wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.queue = FairQueue(flight, room)
        self.rate = DrainRate(clock)
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, ticket: Ticket, timeout_s: float) -> AsyncIterator[float]:
        """Wait for a request's turn, and hold its place in flight inside the block.

        Yields:
            seconds that it waited.

        Raises:
            GatewayError: it can never be let through; there is no room; or the time passed first.
        """
        began_s = self._clock()
        await self._wait(ticket, timeout_s)
        done = 0
        try:
            yield self._clock() - began_s
            done = ticket.cost.pairs
        finally:
            self.queue.finish(ticket)
            if done:
                self.rate.finished(done)
            self._let_through()

    def overloaded(self) -> GatewayError:
        """What a request is told that cannot be taken now."""
        backlog = self.queue.in_flight.pairs + self.queue.waiting.pairs
        after = self.rate.seconds_for(backlog)
        return GatewayError("overloaded", f"too much is waiting here; come again in {after} s", retry_after_s=after)

    async def _wait(self, ticket: Ticket, timeout_s: float) -> None:
        self._check(ticket.cost)
        left = self.queue.offer(ticket)
        if left is None:
            raise self.overloaded()
        future = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        for each in left:
            self._waiting.pop(each).set_exception(self.overloaded())
        self._let_through()
        try:
            if not future.done():
                await asyncio.wait({future}, timeout=min(timeout_s, self._max_wait_s))
        except asyncio.CancelledError:
            self._give_up(ticket, future)
            raise
        if future.done():
            future.result()  # pushed out: raises
            return
        self._give_up(ticket, future)
        if timeout_s <= self._max_wait_s:
            raise GatewayError("deadline", "the time for this request passed while it waited for its turn")
        raise self.overloaded()

    def _check(self, cost: Cost) -> None:
        bound = self.queue.flight if self.queue.flight.fits(self.queue.room) else self.queue.room
        if not cost.fits(bound):
            raise GatewayError(
                "too_large",
                f"{cost.pairs} pairs of some {cost.tokens} tokens: the bound for one request is {bound.pairs} pairs "
                f"and {bound.tokens} tokens; send fewer documents, or shorter ones",
            )

    def _let_through(self) -> None:
        for ticket in self.queue.take():
            self._waiting.pop(ticket).set_result(None)

    def _give_up(self, ticket: Ticket, future: asyncio.Future[None]) -> None:
        """The caller went: leave the queue, or give back the turn that came in the same moment."""
        if self._waiting.pop(ticket, None) is not None:
            self.queue.drop(ticket)
        elif future.exception() is None:
            self.queue.finish(ticket)
        self._let_through()
