"""A rerank provider on loopback that speaks the dialects of Cohere, Jina and Voyage, and fails on demand.

It is written from the providers' documents, not from our client: it refuses what they refuse.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

KEY = "test-key-5f2c9a"
DialectName = Literal["cohere", "jina", "voyage"]
PATHS: Mapping[str, str] = {"cohere": "/v2/rerank", "jina": "/v1/rerank", "voyage": "/v1/rerank"}
# every key that the provider documents; the first three are required
KEYS: Mapping[str, tuple[str, ...]] = {
    "cohere": ("model", "query", "documents", "top_n", "max_tokens_per_doc", "priority"),
    "jina": ("model", "query", "documents", "top_n", "return_documents"),
    "voyage": ("model", "query", "documents", "top_k", "return_documents", "truncation"),
}
_TRICKLE_S = 0.01


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    client_port: int


@dataclass(frozen=True)
class Fault:
    """What to do instead of answering.

    Attributes:
        how: "answer" sends status and body; "change" lets the right answer go through ``change`` first; "drop" resets
            the connection; "hang" answers nothing; the others send the right answer byte by byte, its header or body.
    """

    how: Literal["answer", "change", "drop", "hang", "trickle_header", "trickle_body"] = "answer"
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    change: Callable[[dict[str, Any]], object] = lambda answer: answer


def relevance(query: str, document: str) -> float:
    """Share of the query's words that the document has, less a little for its length."""
    words = set(query.lower().split())
    found = words & set(document.lower().split())
    return len(found) / len(words) - 1e-6 * len(document)


class HostedServer:
    """Serves until the ``with`` ends.

    Args:
        dialect: the one it speaks.
        ssl_context: None for plain HTTP.
    """

    def __init__(self, dialect: DialectName, ssl_context: ssl.SSLContext | None = None) -> None:
        self.dialect = dialect
        self.received: list[Received] = []
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.closing = threading.Event()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        if ssl_context is not None:
            self._http.socket = ssl_context.wrap_socket(self._http.socket, server_side=True)
        scheme = "http" if ssl_context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HostedServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def next_fault(self) -> Fault | None:
        return self.faults.popleft() if self.faults else self.always

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON for a request that came to the right path with the right key."""
        complaint = _complaint(self.dialect, body)
        if complaint:
            return (422 if self.dialect == "jina" else 400), _error(self.dialect, complaint)
        return 200, _success(self.dialect, body)


def _complaint(dialect: str, body: dict[str, Any]) -> str | None:
    required, known = KEYS[dialect][:3], KEYS[dialect]
    documents, most = body.get("documents"), 1000
    if missing := [key for key in required if not body.get(key)]:
        return f"missing {missing}"
    if unknown := [key for key in body if key not in known]:
        return f"Argument {unknown} is not supported by our API"
    if not isinstance(documents, list) or not all(isinstance(document, str) for document in documents):
        return "documents must be a list of strings"
    if len(documents) > most:
        return f"{len(documents)} documents are more than {most}"
    if dialect == "voyage" and "" in documents:
        return "Input cannot contain empty strings"
    top = body.get("top_k" if dialect == "voyage" else "top_n")
    return f"top is {top}" if top is not None and not 1 <= top <= len(documents) else None


def _error(dialect: str, message: str) -> dict[str, Any]:
    return {"message": message} if dialect == "cohere" else {"detail": message}


def _success(dialect: str, body: dict[str, Any]) -> dict[str, Any]:
    documents = body["documents"]
    rows: list[dict[str, Any]] = [
        {"index": index, "relevance_score": relevance(body["query"], document)}
        for index, document in enumerate(documents)
    ]
    rows.sort(key=lambda row: -row["relevance_score"])
    tokens = sum(len(document.split()) for document in documents)
    usage = {"total_tokens": tokens, "prompt_tokens": tokens}
    if dialect == "cohere":
        meta = {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens},
        }
        return {"id": "1", "results": rows, "meta": meta}
    if dialect == "jina":
        return {"model": body["model"], "object": "list", "usage": usage, "results": rows}
    return {"object": "list", "data": rows, "model": body["model"], "usage": {"total_tokens": tokens}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    owner: HostedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what several tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._receive(None)
        if not self._failed(b""):
            self._send(404, b"")

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._receive(body)
        if self.path != PATHS[owner.dialect]:
            status, answer = 404, _error(owner.dialect, "no such endpoint")
        elif self.headers["Authorization"] != f"Bearer {KEY}":
            status, answer = 401, _error(owner.dialect, f"invalid api token {self.headers['Authorization']}")
        else:
            status, answer = owner.answer(body)
        encoded = json.dumps(answer).encode()
        if not self._failed(encoded):
            self._send(status, encoded)

    def _receive(self, body: Any) -> None:
        received = Received(self.command, self.path, dict(self.headers), body, self.client_address[1])
        self.server.owner.received.append(received)

    def _failed(self, right: bytes) -> bool:
        fault = self.server.owner.next_fault()
        if fault is None:
            return False
        if fault.how == "answer":
            self._send(fault.status, fault.body, fault.headers)
        elif fault.how == "change":
            self._send(fault.status, json.dumps(fault.change(json.loads(right))).encode())
        else:
            self.close_connection = True
            self._break_off(fault, right)
        return True

    def _break_off(self, fault: Fault, right: bytes) -> None:
        closing = self.server.owner.closing
        if fault.how == "drop":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault.how == "hang":
            closing.wait(30)
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(right)}\r\n".encode()
            if fault.how == "trickle_body":
                self.wfile.write(head + b"\r\n")
            slow = right if fault.how == "trickle_body" else head + b"X-Padding: " + b"x" * 3000
            with suppress(OSError):
                for byte in slow:
                    if closing.is_set():
                        return
                    self.wfile.write(bytes([byte]))
                    time.sleep(_TRICKLE_S)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
