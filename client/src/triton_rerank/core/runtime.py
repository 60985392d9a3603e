"""The one thing in which sync and async differ: how to wait.

The core is written once, as coroutines. Under `SyncRuntime` every wait blocks and returns, so that a coroutine never
suspends and `run_sync` gets its result in one step; under `AsyncRuntime` the event loop runs it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Runtime(Protocol):
    """How to wait."""

    is_async: bool

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def in_thread(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """Result of work that blocks and knows no deadline; it goes on unheard after a TimeoutError."""

    async def gather(self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], *, concurrency: int) -> list[T]:
        """Run jobs that do not raise, at most ``concurrency`` at a time; results in the order of the jobs."""


class SyncRuntime:
    """Blocks."""

    is_async = False

    async def sleep(self, seconds: float) -> None:
        """Block."""
        time.sleep(seconds)

    async def in_thread(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """Wait for a thread of its own."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="triton-rerank")
        try:
            return await outcome(pool.submit(work), self, timeout_s)
        finally:
            pool.shutdown(wait=False)

    async def gather(self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], *, concurrency: int) -> list[T]:
        """One thread for each job that runs."""
        if len(jobs) <= 1:
            return [run_sync(job()) for job in jobs]
        pool = ThreadPoolExecutor(min(concurrency, len(jobs)), thread_name_prefix="triton-rerank")
        try:
            return list(pool.map(lambda job: run_sync(job()), jobs))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class AsyncRuntime:
    """Awaits."""

    is_async = True

    async def sleep(self, seconds: float) -> None:
        """Let the event loop go on."""
        await asyncio.sleep(seconds)

    async def in_thread(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """Hand it to the loop's thread pool."""
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, work), timeout_s)
        except asyncio.TimeoutError as exc:  # the builtin one from Python 3.11 on
            raise TimeoutError(timeout_s) from exc

    async def gather(self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], *, concurrency: int) -> list[T]:
        """One task for each job that runs; what one raises, or the caller's cancellation, first ends the others."""
        free = asyncio.Semaphore(concurrency)

        async def run(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
            """Run a job when fewer than ``concurrency`` others run."""
            async with free:
                return await job()

        tasks = [asyncio.ensure_future(run(job)) for job in jobs]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def outcome(future: Future[T], runtime: Runtime, timeout_s: float) -> T:
    """Result of a thread's work, waited for as the runtime waits.

    Raises:
        TimeoutError: ``timeout_s`` passed first; the work goes on.
    """
    try:
        if runtime.is_async:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
        return future.result(timeout_s)
    except (asyncio.TimeoutError, concurrent.futures.TimeoutError) as exc:  # the builtin one from Python 3.11 on
        raise TimeoutError(timeout_s) from exc


def run_sync(coroutine: Awaitable[T]) -> T:
    """Result of a coroutine whose waits all block.

    Raises:
        RuntimeError: it suspended, which means that something in it needs an event loop.
    """
    steps = coroutine.__await__()
    try:
        next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a coroutine of the sync client suspended: a scorer awaited something that needs an event loop")
