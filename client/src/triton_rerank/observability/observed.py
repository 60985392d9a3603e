"""Scorers that change nothing of what passes: one counts it for Prometheus, one makes it a span of OpenTelemetry."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from triton_rerank.core.scorer import Around, Call, PairRequest, Scored, Scorer
from triton_rerank.errors import ConfigurationError, RerankError
from triton_rerank.observability.servers import ServersCollector

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_DOCUMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_TOKENS = (32, 128, 512, 2048, 8192, 32_768, 131_072, 524_288)
_PARTS = (1, 2, 4, 8, 16, 32)
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
_LOGITS = (-10, -8, -6, -4, -2, -1, 0, 1, 2, 4, 6, 8, 10)
_MARGINS = (0.01, 0.1, 0.25, 0.5, 1, 2, 4, 8)


class MeteredScorer(Around):
    """Counts what ``scorer`` is asked and what it says, in metrics of Prometheus named ``triton_rerank_client_…``.

    Around a chain it sees what callers see; inside one, what that scorer does. Labels are the model, the scorer that
    answered, and classes of errors: no text, no key. Histograms: ``request_duration_seconds`` (by outcome, "ok" or the
    error's class), ``request_documents``, ``request_tokens``, ``request_parts`` (that a list was split into),
    ``deadline_left_ratio`` (of the call's time, when it was answered), ``top_logit`` and ``top_margin`` (best minus
    second: a model that was swapped shows there first). Counters: ``pairs_total`` by kind (``all``, ``truncated``,
    ``cached``) and ``degraded_total`` by the error class of the first choice. With them come those of
    `ServersCollector`: servers that are ready, and attempts, of all `TritonScorer` of this process.

    Args:
        scorer: any; all its calls pass.
        registry: prometheus_client's; None means its default one. Scorers with one registry share the metrics.

    Raises:
        ConfigurationError: prometheus_client is missing.
    """

    def __init__(self, scorer: Scorer, *, registry: CollectorRegistry | None = None) -> None:
        super().__init__(scorer)
        self._metrics = _metrics(registry)

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """What the scorer says; an error is counted, and raised."""
        began_s = time.monotonic()
        try:
            scored = await self._scorer.score(request, call)
        except RerankError as exc:
            self._metrics.seconds.labels(self.model, type(exc).__name__, "").observe(time.monotonic() - began_s)
            raise
        self._metrics.count(scored, time.monotonic() - began_s, 1 - call.deadline.elapsed_s() / call.deadline.timeout_s)
        return scored


class TracedScorer(Around):
    """Makes a span of OpenTelemetry of each request to ``scorer``, and tells Triton of it (``traceparent``).

    The span has the model, the scorer that answered, numbers of documents and tokens, and whether another than the
    first choice answered; of an error its class. No text of a query or document is in it. Where no SDK is set up it
    records nothing, and passes a trace on that is there.

    Args:
        scorer: any; all its calls pass.

    Raises:
        ConfigurationError: opentelemetry-api is missing.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        try:
            from opentelemetry import propagate, trace
        except ImportError as exc:
            raise ConfigurationError("TracedScorer needs OpenTelemetry: pip install 'triton-rerank[otel]'") from exc
        self._inject, self._error = propagate.inject, trace.StatusCode.ERROR
        self._kind = trace.SpanKind.CLIENT
        self._tracer = trace.get_tracer("triton_rerank")

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """What the scorer says, inside a span."""
        asked: dict[str, Any] = {"rerank.model": self.model, "rerank.documents": len(request.documents)}
        with self._tracer.start_as_current_span(
            "rerank", kind=self._kind, attributes=asked, record_exception=False, set_status_on_exception=False
        ) as span:
            headers = dict(call.headers)
            self._inject(headers)
            try:
                scored = await self._scorer.score(request, replace(call, headers=headers))
            except RerankError as exc:
                span.set_status(self._error, type(exc).__name__)
                raise
            span.set_attributes(
                {
                    "rerank.model": scored.model,
                    "rerank.model_version": scored.model_version,
                    "rerank.served_by": scored.served_by,
                    "rerank.tokens": scored.token_count,
                    "rerank.truncated": int(scored.truncated.sum()),
                    "rerank.cached": scored.cached_pairs,
                    "rerank.requests": scored.requests,
                    "rerank.degraded": scored.degraded,
                }
            )
            return scored


class _Metrics:
    """In one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            """A histogram of the client, under the prefix that all its series have."""
            return Histogram(f"triton_rerank_client_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            """A counter of the client, under the same prefix."""
            return Counter(f"triton_rerank_client_{name}", text, labels, registry=registry)

        self.seconds = histogram(
            "request_duration_seconds", "Scoring a request.", _SECONDS, "model", "outcome", "served_by"
        )
        self._documents = histogram("request_documents", "Distinct documents of a request.", _DOCUMENTS, "model")
        self._tokens = histogram("request_tokens", "Tokens read for a request.", _TOKENS, "model")
        self._parts = histogram("request_parts", "Sub-requests of a request.", _PARTS, "model")
        self._left = histogram("deadline_left_ratio", "Share of the call's time that was left.", _SHARES, "model")
        self._top = histogram("top_logit", "Logit of a request's best document.", _LOGITS, "model")
        self._margin = histogram("top_margin", "Best logit minus the second.", _MARGINS, "model")
        self._pairs = counter("pairs", "Pairs that were answered.", "model", "kind")
        self._degraded = counter("degraded", "Requests that another than the first choice answered.", "model", "reason")
        registry.register(ServersCollector())

    def count(self, scored: Scored, seconds: float, left: float) -> None:
        """Count one scored request."""
        model, n_documents = scored.model, scored.truncated.size
        self.seconds.labels(model, "ok", scored.served_by).observe(seconds)
        self._documents.labels(model).observe(n_documents)
        self._tokens.labels(model).observe(scored.token_count)
        self._parts.labels(model).observe(scored.requests)
        self._left.labels(model).observe(left)
        for kind, number in (
            ("all", n_documents),
            ("truncated", scored.truncated.sum()),
            ("cached", scored.cached_pairs),
        ):
            self._pairs.labels(model, kind).inc(int(number))
        if scored.degraded:
            self._degraded.labels(model, scored.attempts[0].error if scored.attempts else "").inc()
        if scored.logits is not None and scored.tiers is None:  # of a cascade, the tiers' logits do not compare
            best = np.sort(scored.logits)[-2:]
            self._top.labels(model).observe(float(best[-1]))
            if best.size > 1:
                self._margin.labels(model).observe(float(best[1] - best[0]))


_made: weakref.WeakKeyDictionary[CollectorRegistry, _Metrics] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _metrics(registry: CollectorRegistry | None) -> _Metrics:
    try:
        from prometheus_client import REGISTRY
    except ImportError as exc:
        raise ConfigurationError(
            "MeteredScorer needs prometheus_client: pip install 'triton-rerank[prometheus]'"
        ) from exc
    registry = REGISTRY if registry is None else registry
    with _making:
        if registry not in _made:
            _made[registry] = _Metrics(registry)
        return _made[registry]
