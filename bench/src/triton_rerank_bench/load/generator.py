"""Loads a served model with real calls, in a closed loop or an open one, and says what came of it.

One thread with an event loop makes all calls, through the public async client. Threads would wait for each other's
interpreter lock for up to 5 ms, which is as long as a call for one pair takes.
"""

from __future__ import annotations

import asyncio
import gc
import math
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from triton_rerank import AsyncRerankClient, TritonOptions
from triton_rerank.contract import ENCODER_SUFFIX
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.loops import (
    NOT_SENT,
    Answer,
    Sample,
    Window,
    check_rate,
    closed_loop,
    open_loop,
    poisson_arrivals,
)
from triton_rerank_bench.load.server import Counts, TritonStatistics, encoder_tensors
from triton_rerank_bench.machine import OtherLoad, PeakMemory, watching
from triton_rerank_bench.served import ServedModel
from triton_rerank_bench.workloads import Workload

TIMEOUT_S = 60.0  # of a call; Triton lets a request wait for 10 s as exported
ELSEWHERE = 0  # pid of a server whose memory cannot be read: it runs on another machine
MOST_IN_FLIGHT = 1000  # of an open loop; many more than the queues that export writes let wait

_MEMORY_PAUSE_S = 0.25  # between the last look at the memory, which is not free, and the first counted call

T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Milliseconds; nearest-rank percentiles of all answered calls, all infinite where none was answered."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class LoadFigures:
    """What one level of load came to.

    Attributes:
        workload: name.
        mode: "closed" or "open".
        concurrency: closed loop: callers.
        rate: open loop: calls a second offered.
        duration_s: seconds in which counted calls began, or should have.
        calls: counted, answered or failed; the warm-up's are not among them.
        errors: error class name -> counted calls; "NotSent" where too many were under way already.
        pairs_per_s: answered pairs a second.
        tokens_per_s: answered tokens a second, special tokens included, padding not.
        latency: of an open loop from the intended start.
        queue_ms: mean a request of the encoder, Triton's own; None, here and below, where it is not known, and under
            continuous scheduling, of which Triton's counters say nothing (triton_rerank_* in its metrics do).
        compute_ms: mean a request of the encoder; each request is charged its whole batch.
        requests_per_execution: requests that Triton merged.
        rows_per_execution: Triton's inference count over its execution count.
        padded_over_real: tokens of the encoder's tensors over real ones.
        peak_memory_bytes: PSS of the server's processes, seen during the warm-up and after the last call.
        late: open loop: from the intended start until the call was made, which is the generator's own part of latency.
        other_load: share of all cores' time that processes other than ours used meanwhile, 0 to 1.
    """

    workload: str
    mode: Literal["closed", "open"]
    concurrency: int | None
    rate: float | None
    duration_s: float
    calls: int
    errors: dict[str, int]
    pairs_per_s: float
    tokens_per_s: float
    latency: Latency
    queue_ms: float | None
    compute_ms: float | None
    requests_per_execution: float | None
    rows_per_execution: float | None
    padded_over_real: float | None
    peak_memory_bytes: int | None
    late: Latency | None = None
    other_load: float | None = None

    @property
    def level(self) -> str:
        """Its load, in words."""
        return f"closed, {self.concurrency}" if self.mode == "closed" else f"open, {self.rate:.3g}/s"

    @property
    def failed(self) -> int:
        """Counted calls that failed."""
        return sum(self.errors.values())

    @property
    def memory_mb(self) -> float | None:
        """Peak memory in megabytes."""
        return None if self.peak_memory_bytes is None else self.peak_memory_bytes / 1e6


class Load:
    """Loads one server with the lists of one workload, in turn, at one level after the other.

    The server's pid may be `ELSEWHERE`. Whoever makes one closes it.

    Raises:
        BenchError: the server does not tokenise the lists.
        RerankError: the server does not have the model, or is not there.
    """

    def __init__(
        self,
        served: ServedModel,
        model: str,
        lists: Sequence[Workload],
        *,
        seed: int,
        options: TritonOptions | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        options = options or TritonOptions()
        self._lists, self._seed, self._timeout_s, self._pid = lists, seed, timeout_s, served.pid
        self._tensors = encoder_tensors(served.target, served.client.model_info(), lists, options)
        self._client = AsyncRerankClient(served.target, model=model, timeout_s=timeout_s, options=options)
        self._encoder = TritonStatistics(served.target, model + ENCODER_SUFFIX)
        self._is_continuous = self._encoder.hides_computation()
        # The default selector, epoll, rounds every wait up to whole milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())

    def closed(self, concurrency: int, duration_s: float, warm_up_s: float) -> LoadFigures:
        """So many callers, each of which asks again as soon as it is answered, and has one counted call at least.

        Raises:
            RerankError: the server was not there at the start.
        """
        callers, _, seen = self._run(lambda window: closed_loop(self._ask, concurrency, window), duration_s, warm_up_s)
        counted, per_s = [sample for samples in callers for sample in samples], per_second(callers)
        return self._figures(counted, per_s, seen, mode="closed", concurrency=concurrency, rate=None)

    def open(self, rate: float, duration_s: float, warm_up_s: float) -> LoadFigures:
        """Calls at Poisson times, whatever has been answered; latency counts from the time when a call should start.

        Pairs a second are those that came within the duration.

        Raises:
            BenchError: the rate gives no call in this time.
            RerankError: the server was not there at the start.
        """
        check_rate(rate, duration_s)

        def calls(window: Window) -> Awaitable[list[Sample]]:
            """Calls that arrive at random, in the warm-up and in the window."""
            warm_up = poisson_arrivals(rate, window.start_s - warm_up_s, window.start_s, seed=self._seed + 1)
            arrivals = poisson_arrivals(rate, window.start_s, window.end_s, seed=self._seed)
            return open_loop(self._ask, [*warm_up, *arrivals], most_in_flight=MOST_IN_FLIGHT)

        samples, window, seen = self._run(calls, duration_s, warm_up_s)
        came = [s.answer for s in samples if s.answer and window.start_s <= s.ended_s < window.end_s]
        per_s = sum(a.pairs for a in came) / duration_s, sum(a.tokens for a in came) / duration_s
        counted = [s for s in samples if s.intended_s >= window.start_s]
        late = latency([s.sent_s - s.intended_s for s in counted if s.error != NOT_SENT])
        return self._figures(counted, per_s, seen, mode="open", concurrency=None, rate=rate, late=late)

    def close(self) -> None:
        """Close all connections; calls that an interrupted level left are cancelled."""

        async def end() -> None:
            """Cancel, then close."""
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self._client.aclose()
            await self._loop.shutdown_default_executor()

        if not self._loop.is_closed():
            self._loop.run_until_complete(end())
            self._loop.close()
            self._encoder.close()

    def _run(
        self, calls: Callable[[Window], Awaitable[T]], duration_s: float, warm_up_s: float
    ) -> tuple[T, Window, dict[str, Any]]:
        """Make the calls of one level: ``calls`` starts at once, and is told in which window they are counted.

        Returns:
            The calls, the window, and what was seen of the server meanwhile, as fields of `LoadFigures`.
        """

        async def level() -> tuple[T, Window, dict[str, Any]]:
            """The calls, and beside them a look at the server's counters and, before and after, at its memory."""
            await self._client.model_info()  # connects
            gc.collect()  # now, rather than during a call
            peak, load, here = PeakMemory(), OtherLoad(), self._pid != ELSEWHERE
            now = time.monotonic()
            window = Window(now + warm_up_s, now + warm_up_s + duration_s)
            watcher = asyncio.ensure_future(asyncio.to_thread(self._watch, peak, warm_up_s - _MEMORY_PAUSE_S))
            counts = asyncio.ensure_future(self._count(window))
            with load:
                made = await calls(window)
            await watcher
            self._watch(peak, 0.0)
            seen = {"peak_memory_bytes": peak.pss_bytes or None, "other_load": load.share() if here else None}
            return made, window, {"duration_s": duration_s, **seen, **await counts}

        return self._loop.run_until_complete(level())

    async def _count(self, window: Window) -> dict[str, float | None]:
        """Of the encoder between the two ends of the window; a server that is gone shows in the errors of the calls."""
        counts: Counts = {}
        with suppress(BenchError):
            await asyncio.sleep(max(0.0, window.start_s - time.monotonic()))
            before = await asyncio.to_thread(self._encoder.read)
            await asyncio.sleep(max(0.0, window.end_s - time.monotonic()))
            counts = await asyncio.to_thread(self._encoder.read, before)
        told = bool(counts and counts["requests"] and not self._is_continuous)
        return {
            "queue_ms": 1e3 * counts["queue_seconds"] / counts["requests"] if told else None,
            "compute_ms": 1e3 * counts["compute_seconds"] / counts["requests"] if told else None,
            "requests_per_execution": counts["requests"] / counts["executions"] if told else None,
            "rows_per_execution": counts["inferences"] / counts["executions"] if told else None,
        }

    def _watch(self, peak: PeakMemory, seconds: float) -> None:
        if self._pid != ELSEWHERE:
            with suppress(BenchError), watching(self._pid, peak):  # likewise
                time.sleep(max(0.0, seconds))

    async def _ask(self, number: int) -> Answer:
        place = number % len(self._lists)
        workload = self._lists[place]
        result = await self._client.rerank(workload.query, workload.documents, timeout_s=self._timeout_s)
        requests, padded = self._tensors[place]
        as_planned = result.timings.requests == requests
        return Answer(result.usage.pairs, result.usage.token_count, padded if as_planned else None)

    def _figures(
        self, counted: Sequence[Sample], per_s: tuple[float, float], seen: Mapping[str, Any], **level: Any
    ) -> LoadFigures:
        answers = [s.answer for s in counted if s.answer]
        padded = [answer.padded_tokens for answer in answers if answer.padded_tokens is not None]
        known = answers and len(padded) == len(answers)
        return LoadFigures(
            workload=self._lists[0].name,
            calls=len(counted),
            errors=dict(Counter(s.error for s in counted if s.error)),
            pairs_per_s=per_s[0],
            tokens_per_s=per_s[1],
            latency=latency([s.ended_s - s.intended_s for s in counted if s.answer]),
            padded_over_real=sum(padded) / sum(answer.tokens for answer in answers) if known else None,
            **seen,
            **level,
        )


def latency(seconds: Sequence[float]) -> Latency:
    """Nearest-rank percentiles: each is one of the values, the least that so many percent do not exceed."""
    ranks = np.percentile([1e3 * each for each in seconds] or [math.inf], (50, 90, 99, 100), method="inverted_cdf")
    return Latency(*ranks.tolist())


def per_second(callers: Sequence[Sequence[Sample]]) -> tuple[float, float]:
    """Pairs and tokens a second of a closed loop: each caller's from its first counted call to the end of its last."""
    pairs = tokens = 0.0
    for samples in callers:
        seconds = samples[-1].ended_s - samples[0].sent_s
        pairs += sum(s.answer.pairs for s in samples if s.answer) / seconds
        tokens += sum(s.answer.tokens for s in samples if s.answer) / seconds
    return pairs, tokens
