"""How calls follow each other: in a closed loop, or in an open one. Knows nothing of who answers.

A closed loop waits for an answer before it asks again, as a batch job does. While the server stands still it asks
nothing, so that one stall is one slow call, however many users would have met it. An open loop asks when users would,
and its latency counts from that time: a stall shows in every call that should have started during it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from triton_rerank import RerankError
from triton_rerank_bench.errors import BenchError

NOT_SENT = "NotSent"
ERROR_PAUSE_S = 0.02  # of a caller in a closed loop: a server that is gone refuses within microseconds


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call brought: pairs, their real tokens, places in the encoder's tensors (None if not known)."""

    pairs: int
    tokens: int
    padded_tokens: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One call: when it should have started, on the event loop's clock, when it did, and when it ended.

    It has an answer, or the class name of its error.
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
    """Callers that ask from now on until the last counted call of each is answered; ``ask`` may raise RerankError.

    Returns:
        The counted calls of each caller, at least one.
    """
    numbers = itertools.count()
    counting = concurrency

    async def caller() -> list[Sample]:
        """One caller that sends its next call when the last one is answered."""
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
    """Calls at the given times, ascending on the event loop's clock, whatever has been answered until then.

    Where ``most_in_flight`` calls are unanswered, a call is not sent, and its error is `NOT_SENT`.
    """
    in_flight = 0

    async def call(number: int, intended_s: float) -> Sample:
        """One call that counts as in flight until it is answered."""
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


def poisson_arrivals(rate: float, start_s: float, end_s: float, *, seed: int) -> list[float]:
    """Times of a Poisson process of so many calls a second, ascending, given that it has as many as its rate says.

    Given their number, the times of a Poisson process are independent and uniform. A plain one would be off by a
    tenth in a hundred calls, and latency near capacity depends on little else than the rate. The same seed gives the
    same draws at another rate.
    """
    # Random.random() is the one method whose sequence Python promises to keep, so all draws go through it.
    draws = random.Random(seed)  # noqa: S311 - arrivals, no secret
    length_s = end_s - start_s
    return sorted(start_s + length_s * draws.random() for _ in range(round(rate * length_s)))


def check_rate(rate: float, duration_s: float) -> None:
    """Raises BenchError unless the rate is above 0, and gives a call in this time."""
    if not (math.isfinite(rate) and rate > 0):
        raise BenchError(f"the rate is {rate:g}: it must be a number of calls a second above 0")
    if rate * duration_s <= 0.5:  # which rounds to none
        raise BenchError(f"the rate of {rate:g} calls a second gives none in {duration_s:g} s; measure for longer")


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
