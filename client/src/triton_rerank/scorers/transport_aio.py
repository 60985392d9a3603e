"""Calls of tritonclient, awaited: the async half of `TritonScorer`. Imported where an event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from triton_rerank.scorers.transport import InferRequest, Translate


class AioTransport:
    """Awaits; belongs to the event loop in which it was made.

    Args:
        connect: opens the channel, given tritonclient's client class.
        translate: makes the error for an RPC that failed.
    """

    def __init__(self, connect: Callable[[Any], Any], translate: Translate) -> None:
        self._client = connect(triton_aio.InferenceServerClient)
        self._translate = translate

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
        try:
            return await getattr(self._client, method)(*arguments, headers=dict(headers), client_timeout=timeout_s)
        except triton.InferenceServerException as exc:
            raise self._translate(exc, None) from exc

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def _infer(self, request: InferRequest) -> triton.InferResult:
        try:
            return await self._client.infer(**request.timed())
        except triton.InferenceServerException as exc:
            raise self._translate(exc, request.request_id) from exc
