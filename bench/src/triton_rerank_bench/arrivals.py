"""When the calls of an open loop should start: a seeded Poisson process."""

from __future__ import annotations

import math
import random

from triton_rerank_bench.errors import BenchError


def poisson_arrivals(rate: float, start_s: float, end_s: float, *, seed: int) -> list[float]:
    """Times of a Poisson process, given that it has as many as its rate says.

    Given their number, the times of a Poisson process are independent and uniform. A plain one would be off by a
    tenth in a hundred calls, and latency near capacity depends on little else than the rate.

    Args:
        rate: calls a second.
        start_s: of the interval, on any clock.
        end_s: of the interval.
        seed: same seed, same times; at another rate, the same draws.

    Returns:
        Seconds on the same clock, ascending.
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
