"""Calls of Triton's gRPC service, awaited: the async half of `TritonScorer`. Imported where an event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from triton_rerank.errors import ConfigurationError
from triton_rerank.scorers.transport import CLOSED, InferRequest, Metadata, Translate


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
        self._closed = False

    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[Any]:
        """One task a sub-request; the first failure, or the caller's cancellation, cancels the others."""
        if len(requests) == 1:
            return [await self._infer(requests[0])]
        free = asyncio.Semaphore(concurrency)

        async def infer(request: InferRequest) -> Any:
            async with free:
                return await self._infer(request)

        tasks = [asyncio.ensure_future(infer(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, method: str, message: Any, *, timeout_s: float, metadata: Metadata) -> Any:
        """Call it."""
        return await self._told(lambda: getattr(self._service, method)(message, timeout=timeout_s, metadata=metadata))

    async def close(self) -> None:
        """Close the channel."""
        self._closed = True
        await self._channel.close()

    async def _infer(self, request: InferRequest) -> Any:
        return await self._told(lambda: request.send(self._service.ModelInfer), request)

    async def _told(self, rpc: Callable[[], Awaitable[Any]], request: InferRequest | None = None) -> Any:
        """What it gives, or an error of ours."""
        request_id = None if request is None else request.message.id
        try:
            return await rpc()
        except grpc.RpcError as exc:
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
