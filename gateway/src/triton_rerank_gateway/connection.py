"""One connection of uvicorn's, with the bounds that it lacks: how many are open, how large headers are, how slow."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from triton_rerank_gateway.gateway import Gateway

_LINGER_S = 0.5


def bounded(gateway: Gateway) -> type[HttpToolsProtocol]:
    """The protocol of uvicorn with the bounds of this gateway."""
    return type("BoundedConnection", (Connection,), {"gateway": gateway})


class Connection(HttpToolsProtocol):
    """Closed if a request's headers do not come in time or are too large, or if it is one too many."""

    gateway: ClassVar[Gateway]
    _timer: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None  # runs while an answer waits for a caller who does not take it
    _head_bytes = 0
    _counted = False
    _refused = False

    def connection_made(self, transport: Any) -> None:
        """Refuse what is too much."""
        super().connection_made(transport)
        if len(self.connections) > self.gateway.settings.max_connections:
            self._refuse(503, "too many connections are open; come again later")
            return
        self._counted = True
        self.gateway.metrics.connections.inc()
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_timer()
        self._stop_watching()
        if self._counted:
            self.gateway.metrics.connections.dec()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it, unless this connection was refused."""
        if not self._refused:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins: its headers must come in time."""
        super().on_message_begin()
        self._head_bytes = 0
        self._start_timer()

    def on_url(self, url: bytes) -> None:
        """Count it."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count it."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The headers are there; the app bounds the body."""
        if not self._refused:
            self._stop_timer()
            super().on_headers_complete()

    def on_response_complete(self) -> None:
        """An answer before the body's end: the rest is read and dropped, but not for ever."""
        unread = self.cycle.more_body
        super().on_response_complete()
        if unread:
            self._start_timer()

    def pause_writing(self) -> None:
        """An answer is larger than what the caller has taken so far."""
        super().pause_writing()
        self._watch_caller()

    def resume_writing(self) -> None:
        """It took it."""
        super().resume_writing()
        self._stop_watching()

    def send_400_response(self, msg: str) -> None:
        """In JSON, like everything."""
        self._refuse(400, msg)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        most = self.gateway.settings.max_header_bytes
        if self._head_bytes > most:
            self._refuse(431, f"the headers are larger than {most} bytes")

    def _refuse(self, status: int, message: str) -> None:
        if self._refused:
            return
        body = json.dumps({"message": message, "detail": message}).encode()
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\nretry-after: 1\r\n\r\n" + body)
        self._refused = True
        self._start_timer(_LINGER_S)  # closed at once, what the caller still sends would take the answer away from it

    def _watch_caller(self, left: float = math.inf) -> None:
        """End the connection if nothing more was taken of the answer since bytes were ``left``."""
        waiting = self.transport.get_write_buffer_size()
        if waiting < left:
            wait_s = self.gateway.settings.send_timeout_s
            self._sending = self.loop.call_later(wait_s, self._watch_caller, waiting)
        else:
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _start_timer(self, seconds: float | None = None) -> None:
        self._stop_timer()
        wait_s = self.gateway.settings.head_timeout_s if seconds is None else seconds
        self._timer = self.loop.call_later(wait_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
