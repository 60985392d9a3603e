"""Calls of Triton's gRPC service, blocking or awaited."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime
from triton_rerank.errors import ConfigurationError, DeadlineExceededError, RerankError

Metadata: TypeAlias = "tuple[tuple[str, str], ...]"
Translate: TypeAlias = "Callable[[grpc.RpcError, str | None], RerankError]"
T = TypeVar("T")
CLOSED = "the client was closed while this call was under way: close it after its last call"
_GRACE_S = 1.0  # gRPC ends a call at its deadline; waiting longer means that it did not
_QUEUE_TIMEOUT = "timeout"  # Triton's own name of the parameter; microseconds


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One sub-request, but for what depends on when it is sent.

    Attributes:
        message: ``ModelInferRequest``.
        deadline: of the call that it is a part of.
        doing: what the time is wanted for; named in the error.
        metadata: gRPC's.
        compression: of the request.
    """

    message: Any
    deadline: Deadline
    doing: str
    metadata: Metadata = field(repr=False)
    compression: grpc.Compression | None

    def send(self, rpc: Callable[..., T]) -> T:
        """Call it; what is left of the deadline bounds the call, and the time in Triton's queues."""
        left_s = self.deadline.left_s(doing=self.doing)
        self.message.parameters[_QUEUE_TIMEOUT].int64_param = max(1, int(left_s * 1e6))
        return rpc(self.message, timeout=left_s, metadata=self.metadata, compression=self.compression)


class Transport(ABC):
    """What `TritonScorer` needs of a connection.

    Args:
        channel: to Triton, of ``grpc`` or ``grpc.aio``; closed with this.
        translate: makes the error for an RPC that failed.
    """

    def __init__(self, channel: Any, translate: Translate) -> None:
        self._channel = channel
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._translate = translate

    @abstractmethod
    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[Any]:
        """Answers (``ModelInferResponse``) in order; the first failure ends the others."""

    async def ask(self, method: str, message: Any, *, timeout_s: float, metadata: Metadata) -> Any:
        """Call a method of the service that is no inference."""
        return await self._told(lambda: getattr(self._service, method)(message, timeout=timeout_s, metadata=metadata))

    async def _infer(self, request: InferRequest) -> Any:
        return await self._told(lambda: request.send(self._service.ModelInfer), request.message.id)

    @abstractmethod
    async def _told(self, rpc: Callable[[], Any], request_id: str | None = None) -> Any:
        """What an RPC gives, or an error of ours."""


class SyncTransport(Transport):
    """Blocks."""

    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[Any]:
        """Send from this thread; answers come through a queue, and what is under way is cancelled on a failure."""
        if len(requests) == 1 or concurrency == 1:
            return [await self._infer(request) for request in requests]
        answers: SimpleQueue[int] = SimpleQueue()
        results: list[Any] = [None] * len(requests)
        waiting = iter(range(len(requests)))
        running: dict[int, Any] = {}
        try:
            for first in islice(waiting, concurrency):
                running[first] = await self._start(requests[first], first, answers)
            while running:
                place = self._next(answers, requests[0])
                results[place] = await self._told(running.pop(place).result, requests[place].message.id)
                for following in islice(waiting, 1):
                    running[following] = await self._start(requests[following], following, answers)
        finally:
            for call in running.values():
                call.cancel()
        return results

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    async def _start(self, request: InferRequest, place: int, answers: SimpleQueue[int]) -> Any:
        call = await self._told(lambda: request.send(self._service.ModelInfer.future), request.message.id)
        call.add_done_callback(lambda _: answers.put(place))
        return call

    async def _told(self, rpc: Callable[[], Any], request_id: str | None = None) -> Any:
        try:
            return rpc()
        except grpc.RpcError as exc:
            raise self._translate(exc, request_id) from exc
        except ValueError as exc:
            if "closed" not in str(exc):  # gRPC says "Cannot invoke RPC on closed channel!"
                raise
            raise ConfigurationError(CLOSED, request_id=request_id) from exc

    @staticmethod
    def _next(answers: SimpleQueue[int], request: InferRequest) -> int:
        try:
            return answers.get(timeout=max(0.0, request.deadline.timeout_s - request.deadline.elapsed_s()) + _GRACE_S)
        except Empty as exc:
            raise DeadlineExceededError(
                f"nothing came {_GRACE_S:g} s after timeout_s of {request.deadline.timeout_s:g} s, where gRPC ends "
                "calls; please report it"
            ) from exc


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
