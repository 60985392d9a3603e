"""One HTTP exchange within a deadline, whoever waits for it.

The HTTP client lives in an event loop of its own, in a daemon thread of its own; a sync caller blocks until its
exchange is done, an async one awaits it. That makes one implementation for both, and it gives two things that a client
in the caller's thread or loop does not: an exchange ends at the deadline wherever it is (a name that does not resolve,
a header that comes byte by byte), where a blocking client's timeouts hold for one read each; and connections outlive
the caller's event loop, where an async client breaks in its second one.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from triton_rerank.core.runtime import outcome
from triton_rerank.core.scorer import Call
from triton_rerank.errors import DeadlineExceededError, InvalidResponseError, ServerUnavailableError

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # scores of 1,000 documents are 100 kB
_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What to send.

    Attributes:
        method: "POST" or "HEAD".
        url: absolute.
        headers: of this request.
        body: may be empty.
        who: model and address, as messages name them.
        request_id: for errors.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    who: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What came back; ``headers`` ignore case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)  # providers echo what was sent


class HttpChannel:
    """Sends requests; safe to share between threads and event loops; a forked process opens its own connections.

    Args:
        make_client: makes the HTTP client; called inside the channel's thread, at the first request.
    """

    def __init__(self, make_client: Callable[[], httpx.AsyncClient]) -> None:
        self._make_client = make_client
        self._lock = threading.Lock()
        self._loop: _LoopThread | None = None
        self._finalizer: weakref.finalize[[], HttpChannel] | None = None

    async def send(self, request: HttpRequest, call: Call) -> HttpReply:
        """Send a request and read the whole answer, whatever its status.

        Raises:
            DeadlineExceededError: the call's deadline passed first; the exchange is cancelled.
            InvalidResponseError: the answer is larger than `MAX_ANSWER_BYTES`, or its encoding is broken.
            ServerUnavailableError: no connection, or it broke.
        """
        left_s = call.deadline.left_s(doing=f"{request.who} was asked")
        exchange = self._start(request)
        try:
            return await outcome(exchange, call.runtime, left_s)
        except TimeoutError as exc:
            raise DeadlineExceededError(
                f"{request.who} did not answer in the {left_s:.3g} s left of timeout_s; raise it, or ask less",
                request_id=request.request_id,
            ) from exc
        finally:
            exchange.cancel()  # no effect on one that is done

    def close(self) -> None:
        """Close idle connections now, and those in use after their exchange; a later request opens the channel anew."""
        with self._lock:
            loop, self._loop = self._loop, None
            if self._finalizer is not None:
                self._finalizer()
        if loop is not None:
            loop.join(_CLOSE_S)

    def _start(self, request: HttpRequest) -> Future[HttpReply]:
        with self._lock:  # also orders it before or after a close
            if self._loop is None or self._loop.pid != os.getpid():
                self._loop = _LoopThread(self._make_client)
                # a channel that is dropped without close() ends its thread too
                self._finalizer = weakref.finalize(self, self._loop.stop)
                self._finalizer.atexit = False
            return self._loop.start(request)


class _LoopThread:
    """An event loop in a daemon thread, with the HTTP client that lives in it."""

    def __init__(self, make_client: Callable[[], httpx.AsyncClient]) -> None:
        self.pid = os.getpid()  # threads do not survive a fork
        self._make_client = make_client
        self._client: httpx.AsyncClient | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="triton-rerank-http", daemon=True)
        self._thread.start()

    def start(self, request: HttpRequest) -> Future[HttpReply]:
        """Begin an exchange in the loop's thread; the future is done with the reply."""
        return asyncio.run_coroutine_threadsafe(self._exchange(request), self._loop)

    def stop(self) -> None:
        """Let the loop wind down and its thread end, without waiting for it."""
        if self.pid == os.getpid():  # a forked child has the loop, but not the thread that would run this
            asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, ``timeout_s`` at most."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _wind_down(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*under_way, return_exceptions=True)  # each is cancelled at its caller's deadline
        if self._client is not None:
            await self._client.aclose()
        self._loop.stop()

    async def _exchange(self, request: HttpRequest) -> HttpReply:
        import httpx

        self._client = self._client or self._make_client()
        try:
            async with self._client.stream(
                request.method, request.url, headers=dict(request.headers), content=request.body
            ) as response:
                return HttpReply(response.status_code, response.headers, await _read(response, request))
        except httpx.DecodingError as exc:
            raise InvalidResponseError(
                f"{request.who}: the answer's content encoding is broken: {exc}", request_id=request.request_id
            ) from exc
        except (httpx.HTTPError, OSError) as exc:
            raise ServerUnavailableError(
                f"{request.who}: {str(exc) or type(exc).__name__}; check base_url, the network and the certificate",
                request_id=request.request_id,
            ) from exc


async def _read(response: httpx.Response, request: HttpRequest) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise InvalidResponseError(
                f"{request.who}: the answer has more than {MAX_ANSWER_BYTES} bytes; check base_url",
                request_id=request.request_id,
            )
    return bytes(body)
