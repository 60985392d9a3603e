"""Loops of calls: what an open one shows and a closed one hides, and that it never waits for an answer."""

from __future__ import annotations

import asyncio
import itertools
import math
import selectors
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from triton_rerank import DeadlineExceededError, OverloadedError
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load import loops
from triton_rerank_bench.load.generator import Latency, latency
from triton_rerank_bench.load.loops import (
    NOT_SENT,
    Answer,
    Ask,
    Sample,
    Window,
    check_rate,
    closed_loop,
    open_loop,
    poisson_arrivals,
)

ANSWER = Answer(pairs=3, tokens=200, padded_tokens=384)
MOST = 10_000
SERVICE_S = 0.005
STALL_S = 1.0


class Clock(selectors.DefaultSelector):
    """An event loop's: where that would wait, the time has passed at once, however busy the machine is."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        Clock.now_s += timeout or 0.0
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(Clock())

    def time(self) -> float:
        return Clock.now_s


class Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> Loop:
        return Loop()


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loops, "_now", lambda: Clock.now_s)
    asyncio.set_event_loop_policy(Policy())
    yield
    asyncio.set_event_loop_policy(None)


def stalling(start_s: float, *, service_s: float = SERVICE_S) -> Ask:
    """A server that answers nobody between ``start_s`` and a second later."""

    async def ask(_: int) -> Answer:
        done_s = Clock.now_s + service_s
        if done_s > start_s and Clock.now_s < start_s + STALL_S:
            done_s = start_s + STALL_S + service_s
        await asyncio.sleep(max(0.0, done_s - Clock.now_s))
        return ANSWER

    return ask


def window(warm_up_s: float, duration_s: float) -> Window:
    now = Clock.now_s
    return Window(now + warm_up_s, now + warm_up_s + duration_s)


def every(period_s: float, count: int) -> list[float]:
    start_s = Clock.now_s + 0.01
    return [start_s + number * period_s for number in range(count)]


def told(samples: Sequence[Sample]) -> Latency:
    return latency([sample.ended_s - sample.intended_s for sample in samples if sample.answer])


def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides() -> None:
    async def closed() -> list[Sample]:
        counted = window(0.0, 2.0)
        (samples,) = await closed_loop(stalling(counted.start_s + 0.5), 1, counted)
        return samples

    async def opened() -> list[Sample]:
        start_s = Clock.now_s
        arrivals = poisson_arrivals(100, start_s, start_s + 2.0, seed=1)
        return await open_loop(stalling(start_s + 0.5), arrivals, most_in_flight=MOST)

    hidden, shown = told(asyncio.run(closed())), told(asyncio.run(opened()))
    assert hidden.max_ms > 900
    assert hidden.p99_ms < 100  # one slow call of more than a hundred
    assert shown.p99_ms > 900
    assert 300 < shown.p90_ms < 1000  # half of the calls fell into the stall, and waited for what was left of it
    assert shown.p50_ms < 600


def test_an_open_loop_sends_on_time_though_nothing_is_answered() -> None:
    async def run() -> tuple[list[Sample], list[float]]:
        released, sent = asyncio.Event(), []

        async def ask(_: int) -> Answer:
            sent.append(Clock.now_s)
            await released.wait()
            return ANSWER

        arrivals = every(0.01, 50)
        asyncio.get_running_loop().call_at(arrivals[-1] + 0.2, released.set)
        return await open_loop(ask, arrivals, most_in_flight=MOST), sent

    samples, sent = asyncio.run(run())
    assert [sample.sent_s for sample in samples] == pytest.approx(sent, abs=0.005)
    assert statistics.median(sample.sent_s - sample.intended_s for sample in samples) < 0.01
    assert all(sample.answer for sample in samples)
    assert told(samples).max_ms == pytest.approx(200 + 49 * 10, abs=60)


def test_a_stall_of_the_generator_itself_counts_from_the_intended_start() -> None:
    async def ask(number: int) -> Answer:
        if number == 10:
            Clock.now_s += 0.3  # the event loop stands still
        return ANSWER

    async def run() -> list[Sample]:
        return await open_loop(ask, every(0.01, 60), most_in_flight=MOST)

    samples = asyncio.run(run())
    late = latency([sample.sent_s - sample.intended_s for sample in samples])
    assert late.max_ms > 250
    assert told(samples).max_ms > 250
    assert sum(sample.ended_s - sample.intended_s > 0.1 for sample in samples) >= 15  # each call that it delayed


def test_calls_beyond_the_bound_are_errors_with_a_name_and_are_not_sent() -> None:
    asked = []

    async def ask(number: int) -> Answer:
        asked.append(number)
        await asyncio.sleep(0.5)
        return ANSWER

    async def run() -> list[Sample]:
        return await open_loop(ask, every(0.005, 20), most_in_flight=4)

    samples = asyncio.run(run())
    assert asked == [0, 1, 2, 3]
    assert [sample.error for sample in samples] == [None] * 4 + [NOT_SENT] * 16
    assert len(samples) == 20


@pytest.mark.parametrize("mode", ["closed", "open"])
def test_failing_calls_are_counted_by_class_and_do_not_stop_the_run(mode: str) -> None:
    async def ask(number: int) -> Answer:
        if number % 4 == 1:
            raise OverloadedError("the queue is full")
        if number % 4 == 3:
            raise DeadlineExceededError("too late")
        return ANSWER

    async def run() -> list[Sample]:
        if mode == "open":
            return await open_loop(ask, every(0.002, 40), most_in_flight=MOST)
        return [sample for samples in await closed_loop(ask, 2, window(0.0, 0.3)) for sample in samples]

    samples = asyncio.run(run())
    errors = Counter(sample.error for sample in samples)
    assert set(errors) == {None, "OverloadedError", "DeadlineExceededError"}
    assert all((sample.answer is None) == bool(sample.error) for sample in samples)
    if mode == "open":
        assert errors == {None: 20, "OverloadedError": 10, "DeadlineExceededError": 10}


def test_a_closed_loop_does_not_spin_on_a_server_that_refuses_at_once() -> None:
    async def ask(_: int) -> Answer:
        raise OverloadedError("no")

    (samples,) = asyncio.run(closed_loop(ask, 1, window(0.0, 0.3)))
    assert 15 <= len(samples) <= 16


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_a_fault_of_the_generator_is_no_failed_call(loop: str) -> None:
    async def ask(_: int) -> Answer:
        raise ZeroDivisionError

    async def run() -> object:
        if loop == "open":
            return await open_loop(ask, every(0.001, 3), most_in_flight=MOST)
        return await closed_loop(ask, 2, window(0.0, 0.1))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def test_a_closed_loop_has_so_many_calls_under_way_until_the_last_counted_one_is_answered() -> None:
    in_flight = 0
    seen: list[tuple[float, int]] = []

    async def ask(number: int) -> Answer:
        nonlocal in_flight
        in_flight += 1
        seen.append((Clock.now_s, in_flight))
        await asyncio.sleep(0.02 if number % 3 else 0.1)
        in_flight -= 1
        return ANSWER

    async def run() -> list[list[Sample]]:
        return await closed_loop(ask, 3, window(0.1, 0.4))

    callers = asyncio.run(run())
    assert len(callers) == 3
    last_s = max(samples[-1].ended_s for samples in callers)
    assert {count for began_s, count in seen[3:] if began_s < last_s} == {3}
    assert max(samples[-1].sent_s for samples in callers) < last_s


def test_a_closed_loop_counts_calls_that_begin_in_the_window_and_one_a_caller_at_least() -> None:
    async def ask(_: int) -> Answer:
        await asyncio.sleep(0.05)
        return ANSWER

    async def run(duration_s: float) -> tuple[Window, list[list[Sample]]]:
        counted = window(0.12, duration_s)
        return counted, await closed_loop(ask, 2, counted)

    counted, callers = asyncio.run(run(0.3))
    for samples in callers:
        assert all(counted.start_s <= sample.sent_s < counted.end_s + 0.01 for sample in samples)
        assert 4 <= len(samples) <= 7
    _, callers = asyncio.run(run(0.001))
    assert [len(samples) for samples in callers] == [1, 1]


def test_arrivals_are_seeded_ascending_and_as_many_as_the_rate_says() -> None:
    arrivals = poisson_arrivals(12.5, 100.0, 108.0, seed=1)
    assert len(arrivals) == 100
    assert arrivals == sorted(arrivals) == poisson_arrivals(12.5, 100.0, 108.0, seed=1)
    assert 100.0 <= arrivals[0] <= arrivals[-1] < 108.0
    assert arrivals != poisson_arrivals(12.5, 100.0, 108.0, seed=2)


def test_gaps_are_exponential_and_independent() -> None:
    arrivals = poisson_arrivals(50.0, 0.0, 400.0, seed=3)
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert statistics.fmean(gaps) == pytest.approx(0.02, rel=0.01)
    assert statistics.pstdev(gaps) == pytest.approx(0.02, rel=0.03)  # of a uniform gap it would be 0.012, of a fixed 0
    for share in (0.1, 0.5, 0.9, 0.99):
        below = sum(gap < -0.02 * math.log(1 - share) for gap in gaps) / len(gaps)
        assert below == pytest.approx(share, abs=0.01)
    assert abs(statistics.correlation(gaps[1:], gaps[:-1])) < 0.02


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_told(rate: float) -> None:
    with pytest.raises(BenchError, match=r"the rate is .*: it must be a number of calls a second above 0"):
        check_rate(rate, 10.0)


def test_a_rate_that_gives_no_call_is_told() -> None:
    check_rate(0.06, 10.0)
    assert len(poisson_arrivals(0.06, 0.0, 10.0, seed=1)) == 1
    with pytest.raises(BenchError, match=r"0.05 calls a second gives none in 10 s"):
        check_rate(0.05, 10.0)
    assert poisson_arrivals(0.05, 0.0, 10.0, seed=1) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.001 * value for value in range(1, 101)], (50, 90, 99, 100)),
        ([0.001 * value for value in range(10, 0, -1)], (5, 9, 10, 10)),
        ([0.007], (7, 7, 7, 7)),
        ([0.001, 0.002, 0.003], (2, 3, 3, 3)),
        ([0.001 * value for value in range(1, 201)], (100, 180, 198, 200)),
    ],
)
def test_percentiles_are_values_by_nearest_rank(seconds: list[float], expected: tuple[float, ...]) -> None:
    found = latency(seconds)
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms) == pytest.approx(expected)


def test_latency_of_nothing_is_worse_than_any_bound() -> None:
    assert latency([]) == Latency(math.inf, math.inf, math.inf, math.inf)
