"""Calls of Triton's gRPC service, awaited: the async half of `TritonScorer`. Imported where an event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from triton_rerank.core.runtime import gather_tasks
from triton_rerank.errors import ConfigurationError
from triton_rerank.triton.transport import CLOSED, InferRequest, Metadata, Translate


class AioTransport:
    """Awaits; belongs to the event loop in which it was made.

    Args:
        channel: to Triton, of ``grpc.aio``; closed with this.
        translate: makes the error for an RPC that failed.
    """

    def __init__(self, channel: grpc.aio.Channel, translate: Translate) -> None:
        self._channel = channel
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._translate = translate

    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[Any]:
        """One task a sub-request; the first failure, or the caller's cancellation, cancels the others."""
        if len(requests) == 1:
            return [await self._infer(requests[0])]
        return await gather_tasks([partial(self._infer, request) for request in requests], concurrency=concurrency)

    async def ask(self, method: str, message: Any, *, timeout_s: float, metadata: Metadata) -> Any:
        """Call it."""
        return await self._told(lambda: getattr(self._service, method)(message, timeout=timeout_s, metadata=metadata))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _infer(self, request: InferRequest) -> Any:
        return await self._told(lambda: request.send(self._service.ModelInfer), request)

    async def _told(self, rpc: Callable[[], Awaitable[Any]], request: InferRequest | None = None) -> Any:
        """What it gives, or an error of ours."""
        request_id = None if request is None else request.message.id
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
