"""What is to be seen of one request: a line of JSON in the log, and the metrics. No text of a query or document."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from triton_rerank import ServersCollector
from triton_rerank_gateway.admission.admission import Admission
from triton_rerank_gateway.admission.body import Room

_log = logging.getLogger("triton_rerank_gateway")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PAIRS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_TOKENS = (32, 128, 512, 2048, 8192, 32_768, 131_072, 524_288, 2_097_152)
CLIENT_GONE = 499


@dataclass
class Record:
    """One request, filled in as it goes.

    Attributes:
        request_id: echoed to the caller, sent to nobody else.
        dialect: name.
        model: public name, "" until it is known.
        key: name of the key, "" until it is known.
        status: HTTP status; 499 if the caller hung up.
        pairs, tokens: of the request; tokens as models counted them, all parts.
        waited_s, scoring_s, total_s: seconds.
        truncated, cached: pairs.
        degraded: another than the first choice answered.
        served_by: name of the scorer that did.
        error: class or kind of the error, "" for none.
    """

    request_id: str
    dialect: str
    model: str = ""
    key: str = ""
    status: int = 0
    pairs: int = 0
    tokens: int = 0
    waited_s: float = 0.0
    scoring_s: float = 0.0
    total_s: float = 0.0
    truncated: int = 0
    cached: int = 0
    degraded: bool = False
    served_by: str = ""
    error: str = ""


class Metrics:
    """Prometheus metrics of one gateway, in a registry of its own.

    Args:
        admission: whose queue is shown.
        room: whose bytes are.
    """

    def __init__(self, admission: Admission, room: Room) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests.", "dialect", "model", "key", "status")
        self._events = self._counter("events", "What happened to requests.", "event", "model")
        self._pairs_by_kind = self._counter("pairs", "Pairs that were answered.", "kind", "model")
        self._total = self._histogram("request_seconds", "From first byte to answer.", _SECONDS)
        self._waited = self._histogram("waiting_seconds", "Waiting for the request's turn.", _SECONDS)
        self._scoring = self._histogram("scoring_seconds", "Asking the models.", _SECONDS)
        self._pairs = self._histogram("request_pairs", "Pairs of a request.", _PAIRS)
        self._tokens = self._histogram("request_tokens", "Tokens of a request.", _TOKENS)
        queue = admission.queue
        self._gauge("in_flight_pairs", "Pairs being scored.", lambda: queue.in_flight.pairs)
        self._gauge("in_flight_tokens", "Their estimated tokens.", lambda: queue.in_flight.tokens)
        self._gauge("waiting_pairs", "Pairs that wait for their turn.", lambda: queue.waiting.pairs)
        self._gauge("waiting_tokens", "Their estimated tokens.", lambda: queue.waiting.tokens)
        self._gauge("bodies_bytes", "Bodies of requests under way.", lambda: room.used_bytes)
        self._gauge("drain_pairs_per_second", "Pairs finished a second, of late.", admission.rate.per_s)
        self.connections = Gauge(_named("connections"), "Open connections.", registry=self.registry)
        self.registry.register(ServersCollector())

    def count(self, record: Record) -> None:
        """Count one request that is done."""
        self._requests.labels(record.dialect, record.model, record.key, str(record.status)).inc()
        self._total.labels(record.model).observe(record.total_s)
        for event, happened in (
            ("degraded", record.degraded),
            ("refused", record.status == 429),
            ("cancelled", record.status == CLIENT_GONE),
        ):
            if happened:
                self._events.labels(event, record.model).inc()
        if record.status == 200 and record.pairs:
            self._count_work(record)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def _count_work(self, record: Record) -> None:
        self._waited.labels(record.model).observe(record.waited_s)
        self._scoring.labels(record.model).observe(record.scoring_s)
        self._pairs.labels(record.model).observe(record.pairs)
        self._tokens.labels(record.model).observe(record.tokens)
        for kind, number in (("all", record.pairs), ("truncated", record.truncated), ("cached", record.cached)):
            self._pairs_by_kind.labels(kind, record.model).inc(number)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_named(name), text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(_named(name), text, ("model",), buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, read: Any) -> None:
        Gauge(_named(name), text, registry=self.registry).set_function(read)


def log(record: Record) -> None:
    """One line for a request that is done."""
    told = {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(record).items()}
    level = logging.ERROR if record.status >= 500 else logging.INFO
    if _log.isEnabledFor(level):  # as _log.log does, without the search for the line that called it
        _log.handle(_log.makeRecord(_log.name, level, "", 0, "request", (), None, extra=told))


class JsonLines(logging.Formatter):
    """A line of JSON for each entry: time, level, event, and what came with it under ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one entry."""
        line = {"time": self._time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()

    @staticmethod
    def _time(record: logging.LogRecord) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "color_message"}


def _named(name: str) -> str:
    return f"triton_rerank_gateway_{name}"
