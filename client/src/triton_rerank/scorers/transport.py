"""Calls of tritonclient, blocking: the sync half of `TritonScorer`. `transport_aio` is the other half."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias

import tritonclient.grpc as triton

from triton_rerank._deadline import Deadline
from triton_rerank.errors import ConfigurationError, DeadlineExceededError, RerankError

Translate: TypeAlias = "Callable[[triton.InferenceServerException, str | None], RerankError]"
CLOSED = "the client was closed while this call was under way: close it after its last call"
_GRACE_S = 1.0  # gRPC ends a call at its deadline; waiting longer means that it did not


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One sub-request: arguments of tritonclient's ``infer``, but for what depends on when it is sent."""

    arguments: Mapping[str, Any]
    deadline: Deadline
    doing: str

    @property
    def request_id(self) -> str:
        """As Triton logs it."""
        return str(self.arguments["request_id"])

    def timed(self) -> dict[str, Any]:
        """All arguments; what is left of the deadline bounds the call, and the time in Triton's queues."""
        left_s = self.deadline.left_s(doing=self.doing)
        return {**self.arguments, "client_timeout": left_s, "timeout": max(1, int(left_s * 1e6))}


class Transport(Protocol):
    """What `TritonScorer` needs of a connection."""

    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[triton.InferResult]:
        """Answers in order; the first failure ends the others."""

    async def ask(self, method: str, *arguments: Any, timeout_s: float, headers: Mapping[str, str]) -> Any:
        """Call a method of tritonclient's client that is no inference."""


class SyncTransport:
    """Blocks.

    Args:
        connect: opens the channel.
        translate: makes the error for an RPC that failed.
    """

    def __init__(self, connect: Callable[[], triton.InferenceServerClient], translate: Translate) -> None:
        self._client = connect()
        self._translate = translate

    async def infer_all(self, requests: Sequence[InferRequest], concurrency: int) -> list[triton.InferResult]:
        """Send from this thread; answers come through a queue, and what is under way is cancelled on a failure."""
        if len(requests) == 1 or concurrency == 1:
            return [self._infer(request) for request in requests]
        answers: SimpleQueue[tuple[int, Any, Any]] = SimpleQueue()
        results: list[Any] = [None] * len(requests)
        waiting = iter(range(len(requests)))
        running = {place: self._start(requests[place], place, answers) for place in islice(waiting, concurrency)}
        try:
            while running:
                place, results[place], error = self._next(answers, requests[0])
                del running[place]
                if error is not None:
                    raise self._translate(error, requests[place].request_id) from error
                for following in islice(waiting, 1):
                    running[following] = self._start(requests[following], following, answers)
        finally:
            for context in running.values():
                context.cancel()
        return results

    async def ask(self, method: str, *arguments: Any, timeout_s: float, headers: Mapping[str, str]) -> Any:
        """Call it."""
        with self._told(None):
            return getattr(self._client, method)(*arguments, headers=dict(headers), client_timeout=timeout_s)

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def _infer(self, request: InferRequest) -> triton.InferResult:
        with self._told(request.request_id):
            return self._client.infer(**request.timed())

    def _start(self, request: InferRequest, place: int, answers: SimpleQueue[tuple[int, Any, Any]]) -> Any:
        def put(place: int, result: Any, error: Any) -> None:
            answers.put((place, result, error))

        with self._told(request.request_id):
            return self._client.async_infer(callback=functools.partial(put, place), **request.timed())

    @contextmanager
    def _told(self, request_id: str | None) -> Iterator[None]:
        try:
            yield
        except triton.InferenceServerException as exc:
            raise self._translate(exc, request_id) from exc
        except ValueError as exc:
            if "closed" not in str(exc):  # gRPC says "Cannot invoke RPC on closed channel!"
                raise
            raise ConfigurationError(CLOSED, request_id=request_id) from exc

    @staticmethod
    def _next(answers: SimpleQueue[tuple[int, Any, Any]], request: InferRequest) -> tuple[int, Any, Any]:
        try:
            return answers.get(timeout=max(0.0, request.deadline.timeout_s - request.deadline.elapsed_s()) + _GRACE_S)
        except Empty as exc:
            raise DeadlineExceededError(
                f"nothing came {_GRACE_S:g} s after timeout_s of {request.deadline.timeout_s:g} s, where gRPC ends "
                "calls; please report it"
            ) from exc
