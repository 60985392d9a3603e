"""One trace from the caller's own span through gateway and client to the steps inside a real Triton."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.collector import Collector, collecting
from support.gateways import process
from support.tritons import NAME, only_bert, start, wait_until

from triton_rerank import RerankClient, TracedScorer, TritonScorer
from triton_rerank.contract import ENCODER_SUFFIX, TOKENIZER_SUFFIX
from triton_rerank_server import TritonServer

QUERY, DOCUMENTS = "how to zip a file", ["gzip shrinks files", "the cat sat on the mat"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ATTEMPTS = 3  # Triton 2.51's exporter loses one trace of a hundred, whole
STEPS = {NAME, NAME + TOKENIZER_SUFFIX, NAME + ENCODER_SUFFIX}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def server(
    collector: Collector, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """As docs/operations.md says: it traces what brings a trace, and nothing else."""
    settings = ("mode=opentelemetry", "rate=0", "level=TIMESTAMPS", f"opentelemetry,url={collector.endpoint}")
    service = "opentelemetry,resource=service.name=triton"
    flags = [f"--trace-config={setting}" for setting in (*settings, service)]
    with start(only_bert(tiny_repository, tmp_path_factory.mktemp("traced") / "model_repository"), *flags) as running:
        yield running


def came(collector: Collector, trace_id: str) -> bool:
    """Whether all spans of Triton's have come, within the time that its exporter may take."""
    return wait_until(lambda: {"InferRequest", *STEPS} <= set(collector.of(trace_id)), 20)


def test_the_gateways_trace_goes_on_in_tritons_steps(
    server: TritonServer, collector: Collector, tmp_path: Path
) -> None:
    flags = ("--otlp-endpoint", collector.endpoint)
    body = {"query": QUERY, "documents": DOCUMENTS}
    with process(server.grpc_target, *flags, log=tmp_path / "gateway.log") as (child, url):
        for attempt in range(ATTEMPTS):
            traced = f"{attempt}{TRACE[1:]}"
            headers = {"traceparent": f"00-{traced}-{PARENT}-01"}
            assert httpx.post(f"{url}/v1/rerank", json=body, headers=headers, timeout=60).status_code == 200
            if came(collector, traced):
                break
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    expected = {"rerank", "wait", "score", "ModelInfer", "InferRequest", *STEPS}
    assert wait_until(lambda: expected <= set(collector.of(traced)), 60), collector.spans
    spans = collector.of(traced)
    assert spans["rerank"].parent == PARENT
    assert spans["InferRequest"].parent == spans["ModelInfer"].id
    assert spans[NAME].parent == spans["InferRequest"].id
    assert {spans[step].parent for step in STEPS - {NAME}} == {spans[NAME].id}
    assert (spans["rerank"].service, spans[NAME].service) == ("triton-rerank-gateway", "triton")
    assert NAME.encode() in collector.received
    assert not [text for text in (QUERY, *DOCUMENTS) if text.encode() in collector.received], "texts in a span"


def test_a_clients_span_is_the_parent_of_tritons(
    server: TritonServer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    with RerankClient(scorer=TracedScorer(TritonScorer(server.grpc_target, NAME)), timeout_s=60.0) as client:
        for _ in range(ATTEMPTS):
            exporter.clear()
            client.rerank(QUERY, DOCUMENTS)
            (span,) = exporter.get_finished_spans()
            assert span.context is not None
            ours = f"{span.context.trace_id:032x}"
            if came(collector, ours):
                break
    assert collector.of(ours)["InferRequest"].parent == f"{span.context.span_id:016x}"
    provider.shutdown()


def test_a_request_without_a_trace_makes_none(server: TritonServer, collector: Collector) -> None:
    """Of two requests, the second with a trace: when its spans have come, those of the first would have too."""
    known = {span.trace for span in collector.spans}
    with RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
        client.rerank(QUERY, DOCUMENTS)
        for attempt in range(ATTEMPTS):
            later = f"{attempt + 1:032x}"
            client.rerank(QUERY, DOCUMENTS, headers={"traceparent": f"00-{later}-{PARENT}-01"})
            if came(collector, later):
                break
    assert {span.trace for span in collector.spans} == {*known, later}
