"""What the scorers that count and trace say, and that nothing else changes by them."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from triton_rerank import (
    AsyncRerankClient,
    CachedScorer,
    ConfigurationError,
    FallbackScorer,
    MeteredScorer,
    OverloadedError,
    RerankClient,
    ServerUnavailableError,
    TracedScorer,
)
from triton_rerank.testing import FakeScorer

QUERY, DOCUMENTS = "cats sleep", ["cats sleep", "a dog", "cats run and run and run"]
PREFIX = "triton_rerank_client_"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(PREFIX + name, labels)


def test_a_request_is_counted_and_its_result_is_what_it_was(registry: CollectorRegistry) -> None:
    plain, metered = FakeScorer(max_length=6), MeteredScorer(FakeScorer(max_length=6), registry=registry)
    with RerankClient(scorer=plain) as before, RerankClient(scorer=metered, timeout_s=10.0) as client:
        assert [each.logit for each in client.rerank(QUERY, DOCUMENTS)] == [
            each.logit for each in before.rerank(QUERY, DOCUMENTS)
        ]
        assert client.is_ready() and client.model_info().max_length == 6
    assert value(registry, "request_duration_seconds_count", model="fake", outcome="ok", served_by="fake") == 1
    assert value(registry, "request_documents_sum", model="fake") == 3
    assert value(registry, "request_tokens_sum", model="fake") == 4 + 4 + 6
    assert value(registry, "request_parts_sum", model="fake") == 1
    assert [value(registry, "top_logit_bucket", model="fake", le=each) for each in ("1.0", "2.0")] == [0, 1]
    assert value(registry, "top_margin_sum", model="fake") == 1
    assert 0.5 < (value(registry, "deadline_left_ratio_sum", model="fake") or 0) <= 1
    kinds = {kind: value(registry, "pairs_total", model="fake", kind=kind) for kind in ("all", "truncated", "cached")}
    assert kinds == {"all": 3, "truncated": 1, "cached": 0}


def test_errors_are_counted_by_their_class_and_raised(registry: CollectorRegistry) -> None:
    error = OverloadedError("full")
    with (
        RerankClient(scorer=MeteredScorer(FakeScorer(error=error), registry=registry)) as client,
        pytest.raises(OverloadedError),
    ):
        client.rerank(QUERY, DOCUMENTS)
    labels = {"model": "fake", "outcome": "OverloadedError", "served_by": ""}
    assert value(registry, "request_duration_seconds_count", **labels) == 1


def test_around_a_chain_it_counts_who_answered_and_why(registry: CollectorRegistry) -> None:
    first = FakeScorer(name="first", error=ServerUnavailableError("gone"))
    chain = FallbackScorer([first, FakeScorer(name="second")])
    with RerankClient(scorer=MeteredScorer(chain, registry=registry)) as client:
        assert client.rerank(QUERY, DOCUMENTS).degraded
        with pytest.raises(ConfigurationError, match="no single model"):
            client.model_info()
    assert value(registry, "degraded_total", model="fake", reason="ServerUnavailableError") == 1
    assert value(registry, "request_duration_seconds_count", model="fake", outcome="ok", served_by="second") == 1


def test_around_a_cache_it_counts_what_came_from_it(registry: CollectorRegistry) -> None:
    async def run() -> None:
        scorer = MeteredScorer(CachedScorer(FakeScorer()), registry=registry)
        async with AsyncRerankClient(scorer=scorer) as client:
            for _ in range(2):
                await client.rerank(QUERY, DOCUMENTS)

    asyncio.run(run())
    assert value(registry, "pairs_total", model="fake", kind="cached") == 3
    assert value(registry, "pairs_total", model="fake", kind="all") == 6


def test_two_scorers_share_the_metrics_of_a_registry_and_no_text_is_in_them(registry: CollectorRegistry) -> None:
    for name in ("one", "two"):
        with RerankClient(scorer=MeteredScorer(FakeScorer(name=name, model=name), registry=registry)) as client:
            client.rerank(QUERY, DOCUMENTS)
    text = generate_latest(registry).decode()
    assert 'model="one"' in text and 'model="two"' in text
    assert "cats" not in text


def test_a_copy_is_made_anew() -> None:
    for made in (MeteredScorer(FakeScorer(name="a")), TracedScorer(FakeScorer(name="a"))):
        copy = pickle.loads(pickle.dumps(made))
        assert type(copy) is type(made) and copy.name == "a" and copy._scorer is not made._scorer


@pytest.mark.parametrize(
    ("scorer", "module", "extra"),
    [(MeteredScorer, "prometheus_client", "prometheus"), (TracedScorer, "opentelemetry", "otel")],
)
def test_an_extra_that_is_missing_is_named(
    scorer: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'triton-rerank\[{extra}\]'"):
        scorer(FakeScorer())


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What an application's SDK would export."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    yield exporter
    provider.shutdown()


def test_a_span_tells_of_the_request_and_triton_of_the_span(spans: InMemorySpanExporter) -> None:
    fake = FakeScorer()
    with RerankClient(scorer=TracedScorer(fake)) as client:
        client.rerank(QUERY, DOCUMENTS, headers={"x-tenant": "7"})
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None and span.context is not None
    assert (span.attributes["rerank.documents"], span.attributes["rerank.served_by"]) == (3, "fake")
    assert span.attributes["rerank.degraded"] is False
    assert fake.calls[0].headers["x-tenant"] == "7"
    assert fake.calls[0].headers["traceparent"].split("-")[1:3] == [
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
    ]
    assert "cats" not in span.to_json()


def test_a_span_of_an_error_has_its_class_and_not_its_text(spans: InMemorySpanExporter) -> None:
    scorer = TracedScorer(FakeScorer(error=OverloadedError("cats")))
    with RerankClient(scorer=scorer) as client, pytest.raises(OverloadedError):
        client.rerank(QUERY, DOCUMENTS)
    found: ReadableSpan
    (found,) = spans.get_finished_spans()
    assert (found.status.status_code, found.status.description) == (trace.StatusCode.ERROR, "OverloadedError")
    assert "cats" not in found.to_json()
