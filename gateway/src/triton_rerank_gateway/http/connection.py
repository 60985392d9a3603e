"""One connection of uvicorn's, with the bounds that it lacks: how many are open, how large headers are, how slow."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from triton_rerank_gateway.gateway import Gateway

# Closed at once, a connection's unread bytes would take the answer away from who still sends. So they are read and
# dropped until none came for so long, or it were so many.
_LINGER_S = 2.0
_LINGER_MOST_S = 30.0
_LINGER_MOST_BYTES = 2**30
_GOODBYE_S = 4.0  # that a caller has for TLS's own end


def bounded(gateway: Gateway) -> type[HttpToolsProtocol]:
    """The protocol of uvicorn with the bounds of this gateway."""
    return type("BoundedConnection", (Connection,), {"gateway": gateway})


class Connection(HttpToolsProtocol):
    """Closed if a request's headers do not come in time or are too large, or if it is one too many."""

    gateway: ClassVar[Gateway]
    _timer: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None  # runs while an answer waits for a caller who does not take it
    _head_bytes = 0
    _in_head = False
    _counted = False
    _refused = False
    _last_words: tuple[int, str] | None = None  # a refusal that waits for the answers before it
    _linger_until: float | None = None  # the loop's time
    _dropped_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Refuse what is too much."""
        secured = transport.get_extra_info("sslcontext") is not None
        super().connection_made(cast(asyncio.Transport, _Secured(transport, self.loop)) if secured else transport)
        most = self.gateway.settings.max_connections
        if len(self.connections) > most and sum(getattr(each, "_counted", False) for each in self.connections) >= most:
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
        """Parse it, unless this connection was refused. Who wishes for another protocol is answered in this one."""
        self._unset_keepalive_if_required()
        if self._linger_until is not None:
            self._drop(len(data), self._linger_until)
        while data and not self._refused:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as wish:  # Java's client sends one, and curl --http2
                data = self._head_without_wish() + data[wish.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            except httptools.HttpParserError:
                self._refuse(400, "this is no HTTP/1.1 that can be read; is it TLS, or HTTP/2?")

    def on_message_begin(self) -> None:
        """A request begins: its headers must come in time."""
        super().on_message_begin()
        self._head_bytes, self._in_head = 0, True
        self._start_timer()

    def on_url(self, url: bytes) -> None:
        """Count it."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count it; behind a body it is no header of the request."""
        if self._in_head:
            super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The headers are there; the app bounds the body."""
        self._in_head = False
        if self.parser.get_method() == b"CONNECT":
            self._refuse(405, "CONNECT is for proxies")
        if not self._refused and not self.parser.should_upgrade():
            self._stop_timer()
            super().on_headers_complete()
            self.cycle.transport = cast(asyncio.Transport, _Lingering(self.transport, self))

    def on_body(self, body: bytes) -> None:
        """A part of it."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        if not self._refused and not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer before the body's end: the rest is read and dropped, but not for ever."""
        unread = self.cycle.more_body
        super().on_response_complete()
        if self._last_words and self.cycle.response_complete and not self.transport.is_closing():
            self._write(*self._last_words)
        elif unread and not self._refused and self.cycle.waiting_for_100_continue:
            self.linger()  # the body will not come, and the next request must not be taken for it
        elif unread and not self._refused:
            self._start_timer(then=self.linger)
        if self._sending is None and self.transport.get_write_buffer_size():
            self._watch_caller()

    def pause_writing(self) -> None:
        """An answer is larger than what the caller has taken so far."""
        super().pause_writing()
        self._watch_caller()

    def resume_writing(self) -> None:
        """It took it."""
        super().resume_writing()
        self._stop_watching()

    def _head_without_wish(self) -> bytes:
        parser, kept = self.parser, [(name, value) for name, value in self.headers if name != b"upgrade"]
        first = b"%b %b HTTP/%b" % (parser.get_method(), self.url, parser.get_http_version().encode())
        return b"\r\n".join([first, *(b"%b: %b" % header for header in kept), b"", b""])

    def _count(self, size: int) -> None:
        self._head_bytes += size
        most = self.gateway.settings.max_header_bytes
        if self._head_bytes > most:
            self._refuse(431, f"the headers are larger than {most} bytes")

    def _refuse(self, status: int, message: str) -> None:
        if self._refused:
            return
        self._refused = True
        self.logger.warning("a connection was refused: %s", message)
        answering = not getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request
        if answering and (self.pipeline or not self.cycle.more_body):
            self._last_words = status, message
            self._stop_timer()
        else:
            if answering:  # its request will never be whole, and this is its answer
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self._write(status, message)

    def _write(self, status: int, message: str) -> None:
        body = json.dumps({"message": message, "detail": message}).encode()
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        again = "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(f"{head}connection: close\r\n{again}\r\n".encode() + body)
        self.linger()

    def linger(self) -> None:
        """End with the answer that was written, and drop what the caller still sends, requests among it."""
        self._refused, self._last_words = True, None
        self.pipeline.clear()
        self.flow.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self._linger_until = self.loop.time() + _LINGER_MOST_S
        self._start_timer(_LINGER_S)

    def _drop(self, n_bytes: int, until: float) -> None:
        self._dropped_bytes += n_bytes
        left_s = 0.0 if self._dropped_bytes > _LINGER_MOST_BYTES else until - self.loop.time()
        self._start_timer(max(0.0, min(_LINGER_S, left_s)))

    def _watch_caller(self, left: float = math.inf) -> None:
        """End the connection if nothing more was taken of the answer since bytes were ``left``."""
        waiting, self._sending = self.transport.get_write_buffer_size(), None
        if waiting == 0:
            return
        if waiting < left:
            wait_s = self.gateway.settings.send_timeout_s
            self._sending = self.loop.call_later(wait_s, self._watch_caller, waiting)
        else:
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _start_timer(self, seconds: float | None = None, then: Callable[[], object] | None = None) -> None:
        self._stop_timer()
        wait_s = self.gateway.settings.head_timeout_s if seconds is None else seconds
        self._timer = self.loop.call_later(wait_s, then or self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Around:
    """A transport, but for what is another here."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Lingering(_Around):
    """The one that an answer is written to: it is not closed under a caller who still sends."""

    def __init__(self, transport: Any, connection: Connection) -> None:
        super().__init__(transport)
        self._connection = connection

    def close(self) -> None:
        """Now, or a little later."""
        if self._connection.cycle.more_body or self._connection.pipeline:
            self._connection.linger()
        else:
            self._transport.close()


class _Secured(_Around):
    """With TLS, closing waits for the caller to close too: half a minute, if he does not."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._loop = loop

    def close(self) -> None:
        """When he has, or some seconds after all was written."""
        self._transport.close()
        self._loop.call_later(_GOODBYE_S, self._end)

    def _end(self) -> None:
        if self._transport.get_write_buffer_size():
            self._loop.call_later(_GOODBYE_S, self._end)
        else:
            self._transport.abort()
