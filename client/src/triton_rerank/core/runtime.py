"""The one thing in which sync and async differ: how to wait.

The core is written once, as coroutines. Under `SyncRuntime` every wait blocks and returns, so that a coroutine never
suspends and `run_sync` gets its result in one step; under `AsyncRuntime` the event loop runs it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
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
            return pool.submit(work).result(timeout_s)
        except concurrent.futures.TimeoutError as exc:  # the builtin one from Python 3.11 on
            raise TimeoutError(timeout_s) from exc
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
        """One task for each job that runs; cancelling the caller, or a bug in one of them, cancels the others."""
        return await gather_tasks(jobs, concurrency=concurrency)


async def gather_tasks(jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]], *, concurrency: int) -> list[T]:
    """Results in the order of the jobs; what one raises, or the caller's cancellation, first ends the others.

    Args:
        jobs: make the coroutines; each is run as a task of its own.
        concurrency: most that run at a time.
    """
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
