"""Runs one level of load on an event loop, and looks at the server meanwhile: its counters and its memory."""

from __future__ import annotations

import asyncio
import gc
import selectors
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from triton_rerank import AsyncRerankClient
from triton_rerank_bench.counters import Counts, TritonStatistics
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.loops import Window
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.memory import PeakMemory, sample, watching

ELSEWHERE = 0  # pid of a server whose memory cannot be read: it runs on another machine
_TICK_S = 0.5
_MEMORY_PAUSE_S = 0.25  # between the last look at the memory, which is not free, and the first counted call

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """What was seen of the server during one level; None where it did not tell, or is elsewhere.

    The counts are the encoder's between the two ends of the window; memory is PSS; the load is the share of all cores'
    time that other processes used, 0 to 1.
    """

    window: Window
    counts: Counts | None
    peak_memory_bytes: int | None
    other_load: float | None


class Levels:
    """One event loop with the client's connections, for one level after the other.

    The pid is tritonserver's or `ELSEWHERE`; ``on_seconds`` is told twice a second how many seconds went by since.
    """

    def __init__(
        self, client: AsyncRerankClient, encoder: TritonStatistics, pid: int, on_seconds: Callable[[float], None]
    ) -> None:
        self._client, self._encoder, self._pid, self._on_seconds = client, encoder, pid, on_seconds
        # The default selector, epoll, rounds every wait up to whole milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())

    def run(self, calls: Callable[[Window], Awaitable[T]], duration_s: float, warm_up_s: float) -> tuple[T, Seen]:
        """Make the calls of one level: ``calls`` starts at once, and is told in which window they are counted.

        Raises:
            RerankError: the server is not there at the start.
        """
        return self._loop.run_until_complete(self._run(calls, duration_s, warm_up_s))

    def close(self) -> None:
        """Close all connections; calls that an interrupted level left are cancelled."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._end())
            self._loop.close()
            self._encoder.close()

    async def _run(
        self, calls: Callable[[Window], Awaitable[T]], duration_s: float, warm_up_s: float
    ) -> tuple[T, Seen]:
        await self._client.model_info()  # connects
        gc.collect()  # now, rather than during a call
        peak, load = PeakMemory(), OtherLoad()
        now = time.monotonic()
        window = Window(now + warm_up_s, now + warm_up_s + duration_s)
        ticker = asyncio.ensure_future(self._tick())
        watcher = asyncio.ensure_future(asyncio.to_thread(self._watch, peak, warm_up_s - _MEMORY_PAUSE_S))
        counts = asyncio.ensure_future(self._count(window))
        with load:
            made = await calls(window)
        await watcher
        ticker.cancel()
        self._watch(peak, 0.0)
        other_load = None if self._pid == ELSEWHERE else load.share()
        return made, Seen(window, await counts, peak.pss_bytes or None, other_load)

    async def _tick(self) -> None:
        told_s = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self._on_seconds(now - told_s)
            told_s = now

    async def _count(self, window: Window) -> Counts | None:
        try:
            await asyncio.sleep(max(0.0, window.start_s - time.monotonic()))
            before = await asyncio.to_thread(self._encoder.read)
            await asyncio.sleep(max(0.0, window.end_s - time.monotonic()))
            return (await asyncio.to_thread(self._encoder.read)).since(before)
        except BenchError:  # a server that is gone shows in the errors of the calls
            return None

    def _watch(self, peak: PeakMemory, seconds: float) -> None:
        if self._pid == ELSEWHERE:
            return
        with suppress(BenchError):  # likewise
            if seconds > 0:
                with watching(self._pid, peak):
                    time.sleep(seconds)
            else:
                peak.take(sample(self._pid))

    async def _end(self) -> None:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._client.aclose()
        await self._loop.shutdown_default_executor()
