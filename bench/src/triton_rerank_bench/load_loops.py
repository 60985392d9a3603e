"""How calls follow each other: in a closed loop, or in an open one. Knows nothing of who answers.

A closed loop waits for an answer before it asks again, as a batch job does. While the server stands still it asks
nothing, so that one stall is one slow call, however many users would have met it. An open loop asks when users would,
and its latency counts from that time: a stall shows in every call that should have started during it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from triton_rerank import RerankError

NOT_SENT = "NotSent"
ERROR_PAUSE_S = 0.02  # of a caller in a closed loop: a server that is gone refuses within microseconds


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call brought.

    Attributes:
        pairs: scored.
        tokens: real ones that were read for them.
        padded_tokens: places in the encoder's tensors, None if that is not known.
    """

    pairs: int
    tokens: int
    padded_tokens: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One call.

    Attributes:
        intended_s: when it should have started, on the event loop's clock.
        sent_s: when it did.
        ended_s: when it was answered, or failed.
        answer: None if it failed.
        error: class name of the error, None if it was answered.
    """

    intended_s: float
    sent_s: float
    ended_s: float
    answer: Answer | None
    error: str | None = None


@dataclass(frozen=True)
class Window:
    """Calls that begin in it are counted; seconds on the event loop's clock."""

    start_s: float
    end_s: float


Ask = Callable[[int], Awaitable[Answer]]  # given the number of the call


async def closed_loop(ask: Ask, concurrency: int, window: Window) -> list[list[Sample]]:
    """Callers that ask from now on until the last counted call of each is answered.

    Args:
        ask: makes a call; may raise RerankError.
        concurrency: callers.
        window: what is counted.

    Returns:
        Of each caller its counted calls, at least one.
    """
    numbers = itertools.count()
    counting = concurrency

    async def caller() -> list[Sample]:
        nonlocal counting
        samples: list[Sample] = []
        while _now() < window.end_s or not samples:
            sample = await _call(ask, next(numbers))
            if sample.sent_s >= window.start_s:
                samples.append(sample)
        counting -= 1
        while counting:  # without these calls, the last counted ones would have the server to themselves
            await _call(ask, next(numbers))
        return samples

    return list(await asyncio.gather(*(caller() for _ in range(concurrency))))


async def open_loop(ask: Ask, arrivals: Sequence[float], *, most_in_flight: int) -> list[Sample]:
    """Calls at the given times, whatever has been answered until then.

    Args:
        ask: makes a call; may raise RerankError.
        arrivals: when calls should start, on the event loop's clock, ascending.
        most_in_flight: where so many are unanswered, a call is not sent, and its error is `NOT_SENT`.

    Returns:
        All calls, in the order of the arrivals.
    """
    in_flight = 0

    async def call(number: int, intended_s: float) -> Sample:
        nonlocal in_flight
        try:
            return await _call(ask, number, intended_s)
        finally:
            in_flight -= 1

    calls: list[asyncio.Task[Sample] | Sample] = []
    for number, intended_s in enumerate(arrivals):
        await asyncio.sleep(max(0.0, intended_s - _now()))  # never skipped: calls under way need their turn
        if in_flight >= most_in_flight:
            now = _now()
            calls.append(Sample(intended_s, now, now, None, NOT_SENT))
        else:
            in_flight += 1
            calls.append(asyncio.ensure_future(call(number, intended_s)))
    return [entry if isinstance(entry, Sample) else await entry for entry in calls]


async def _call(ask: Ask, number: int, intended_s: float | None = None) -> Sample:
    """One call; without a time it is a caller's, who waits a moment after an error."""
    sent_s = _now()
    answer, error = None, None
    try:
        answer = await ask(number)
    except RerankError as exc:
        error = type(exc).__name__
    ended_s = _now()
    if error and intended_s is None:
        await asyncio.sleep(ERROR_PAUSE_S)
    return Sample(sent_s if intended_s is None else intended_s, sent_s, ended_s, answer, error)


_now = time.monotonic  # the event loop's clock
