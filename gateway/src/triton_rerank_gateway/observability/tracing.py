"""OpenTelemetry: a span a request, children for waiting and scoring, one for each call of Triton."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.trace import Span

from triton_rerank import ConfigurationError

_tracer = trace.get_tracer("triton_rerank_gateway")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_exporting = False
_NO_SPAN = contextlib.nullcontext(trace.INVALID_SPAN)  # what is recorded nowhere should cost nothing


def span(name: str, headers: Mapping[str, str] | None = None) -> contextlib.AbstractContextManager[Span]:
    """A span inside the current one or, given a caller's headers, inside the caller's trace."""
    if not _exporting:
        return _NO_SPAN
    return _tracer.start_as_current_span(name, propagate.extract(dict(headers)) if headers is not None else None)


def headers_for(headers: Mapping[str, str]) -> dict[str, str]:
    """What Triton is told of the trace: the current span, or the caller's where nothing is recorded here."""
    told: dict[str, str] = {}
    if _exporting:
        propagate.inject(told)
    given = headers.get("traceparent", "")
    if "traceparent" not in told and _TRACEPARENT.fullmatch(given):
        told["traceparent"] = given
    return told


def export_to(endpoint: str) -> None:
    """Record spans and send them by OTLP over HTTP; for the whole process.

    Raises:
        ConfigurationError: the extra [otel] is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise ConfigurationError(f"otlp_endpoint needs pip install 'triton-rerank-gateway[otel]' ({exc})") from exc
    provider = TracerProvider(resource=Resource.create({"service.name": "triton-rerank-gateway"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    GrpcAioInstrumentorClient().instrument()
    global _exporting
    _exporting = True
