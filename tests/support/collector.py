"""A collector of traces: takes what is exported by OTLP over HTTP, as protobuf (Python's SDK) or JSON (Triton)."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """Ids in hex; the service says who exported it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str


class Collector:
    """What came so far.

    Attributes:
        endpoint: to export to.
        spans: in the order in which they came.
        received: all bodies, unzipped.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.spans: list[Span] = []
        self.received = b""

    def take(self, body: bytes, kind: str) -> None:
        self.received += body
        self.spans += _from_json(json.loads(body)) if "json" in kind else _from_protobuf(body)

    def of(self, trace: str) -> dict[str, Span]:
        """Spans of one trace by the last part of their name."""
        return {span.name.rsplit("/", 1)[-1]: span for span in list(self.spans) if span.trace == trace}


def _from_protobuf(body: bytes) -> list[Span]:
    return [
        Span(_service(resource), span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _service(resource: Any) -> str:
    return next((str(a.value.string_value) for a in resource.resource.attributes if a.key == "service.name"), "")


def _from_json(body: dict[str, Any]) -> list[Span]:
    found = []
    for resource in body["resourceSpans"]:
        attributes = {each["key"]: each["value"] for each in resource["resource"]["attributes"]}
        service = attributes["service.name"]["stringValue"]
        for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
            found.append(Span(service, span["name"], span["traceId"], span["spanId"], span.get("parentSpanId", "")))
    return found


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """It listens inside the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            zipped = self.headers["content-encoding"] == "gzip"
            collector.take(gzip.decompress(body) if zipped else body, self.headers["content-type"])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
