"""Calls of Triton's gRPC service, awaited. Imported where an event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc.aio

from triton_rerank.core.runtime import AsyncRuntime
from triton_rerank.errors import ConfigurationError
from triton_rerank.triton.transport import CLOSED, InferRequest, Transport


class AioTransport(Transport):
    """Awaits; belongs to the event loop in which it was made."""

    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[Any]:
        """One task a sub-request; the first failure, or the caller's cancellation, cancels the others."""
        if len(requests) == 1:
            return [await self._infer(requests[0])]
        jobs = [partial(self._infer, request) for request in requests]
        return await AsyncRuntime().gather(jobs, concurrency=concurrency)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _told(self, rpc: Callable[[], Any], request_id: str | None = None) -> Any:
        try:
            call = asyncio.ensure_future(rpc())
        except grpc.aio.UsageError as exc:  # "Channel is closed."
            raise ConfigurationError(CLOSED, request_id=request_id) from exc
        try:
            await asyncio.wait({call})  # so that its being cancelled is not taken for this task's: see below
        except asyncio.CancelledError:
            call.cancel()
            raise
        try:
            return call.result()
        except grpc.RpcError as exc:
            raise self._translate(exc, request_id) from exc
        except (
            asyncio.CancelledError,
            grpc.aio.UsageError,
        ) as exc:  # gRPC cancels the calls of a channel that is closed
            raise ConfigurationError(CLOSED, request_id=request_id) from exc
