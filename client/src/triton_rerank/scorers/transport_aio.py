"""Calls of tritonclient, awaited: the async half of `TritonScorer`. Imported where an event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc.aio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from triton_rerank.errors import ConfigurationError
from triton_rerank.scorers.transport import CLOSED, InferRequest, Translate


class AioTransport:
    """Awaits; belongs to the event loop in which it was made.

    Args:
        connect: opens the channel, given tritonclient's client class.
        translate: makes the error for an RPC that failed.
    """

    def __init__(self, connect: Callable[[Any], Any], translate: Translate) -> None:
        self._client = connect(triton_aio.InferenceServerClient)
        self._translate = translate
        self._closed = False

    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[triton.InferResult]:
        """One task a sub-request; the first failure, or the caller's cancellation, cancels the others."""
        if len(requests) == 1:
            return [await self._infer(requests[0])]
        free = asyncio.Semaphore(concurrency)

        async def infer(request: InferRequest) -> triton.InferResult:
            async with free:
                return await self._infer(request)

        tasks = [asyncio.ensure_future(infer(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, method: str, *arguments: Any, timeout_s: float, headers: Mapping[str, str]) -> Any:
        """Call it."""
        call = getattr(self._client, method)(*arguments, headers=dict(headers), client_timeout=timeout_s)
        return await self._told(call, None)

    async def close(self) -> None:
        """Close the channel."""
        self._closed = True
        await self._client.close()

    async def _infer(self, request: InferRequest) -> triton.InferResult:
        return await self._told(self._client.infer(**request.timed()), request.request_id)

    async def _told(self, call: Awaitable[Any], request_id: str | None) -> Any:
        try:
            return await call
        except triton.InferenceServerException as exc:
            raise self._translate(exc, request_id) from exc
        except grpc.aio.UsageError as exc:  # "Channel is closed."
            raise ConfigurationError(CLOSED, request_id=request_id) from exc
        except asyncio.CancelledError as exc:  # gRPC cancels the calls of a channel that is closed
            if not self._closed or _is_cancelled():
                raise
            raise ConfigurationError(CLOSED, request_id=request_id) from exc


def _is_cancelled() -> bool:
    """Has somebody cancelled this task? Python 3.10 does not tell."""
    count: Callable[[], int] = getattr(asyncio.current_task(), "cancelling", int)
    return count() > 0
