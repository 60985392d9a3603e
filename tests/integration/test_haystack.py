"""The ranker component: Haystack's own pipelines, a real Triton."""

from __future__ import annotations

import asyncio
import copy
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.components.retrievers import FilterRetriever
from haystack.core.errors import SerializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.telemetry import _telemetry

from triton_rerank.client import RerankClient
from triton_rerank.errors import ConfigurationError, InvalidRequestError, ServerUnavailableError
from triton_rerank.fallback.chain import FallbackScorer
from triton_rerank.integrations import DEGRADED_KEY
from triton_rerank.integrations.haystack import TritonRanker
from triton_rerank.triton.scorer import TritonScorer
from triton_rerank_server import TritonServer

MODEL = "minilm-l6-demo"
QUERY = "how do I make a file smaller?"

Documents: TypeAlias = list[Document]
Run: TypeAlias = Callable[..., Documents]


def run(ranker: TritonRanker, **inputs: Any) -> Documents:
    return ranker.run(**inputs)["documents"]


def run_async(ranker: TritonRanker, **inputs: Any) -> Documents:
    return asyncio.run(ranker.run_async(**inputs))["documents"]


both = pytest.mark.parametrize("call", [run, run_async])


@pytest.fixture(autouse=True)
def no_names_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Telemetry, or whatever else would phone home, needs the address of a host; recorded, since it may hide errors."""
    assert _telemetry.telemetry is None
    asked: list[object] = []
    look_up = socket.getaddrinfo

    def recorded(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", recorded)
    yield
    assert set(asked) <= {"127.0.0.1", "localhost"}


@pytest.fixture
def ranker(server: TritonServer) -> TritonRanker:
    return TritonRanker(MODEL, target=server.grpc_target, timeout_s=60.0)


@pytest.fixture
def documents(passages: list[str]) -> Documents:
    return [Document(id=f"p{i}", content=text, meta={"page": i}, score=0.5) for i, text in enumerate(passages)]


@pytest.fixture
def nobody() -> TritonScorer:
    """A server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return TritonScorer(f"127.0.0.1:{probe.getsockname()[1]}", MODEL)


def ids(documents: Documents) -> list[str]:
    return [document.id for document in documents]


@both
def test_order_scores_and_meta_are_right(
    ranker: TritonRanker, documents: Documents, demo_client: RerankClient, passages: list[str], call: Run
) -> None:
    before = copy.deepcopy(documents)
    expected = demo_client.rerank(QUERY, passages)
    ranked = call(ranker, query=QUERY, documents=documents)
    assert [(d.id, d.content, d.meta) for d in ranked] == [
        (f"p{place.index}", place.document, {"page": place.index}) for place in expected
    ]
    assert [document.score for document in ranked] == pytest.approx([place.score for place in expected], abs=1e-6)
    assert documents == before


@both
def test_the_calls_top_k_and_score_threshold_go_before_the_components(
    ranker: TritonRanker, documents: Documents, call: Run
) -> None:
    everything = call(ranker, query=QUERY, documents=documents)
    assert call(ranker, query=QUERY, documents=documents, top_k=3) == everything[:3]
    threshold = everything[1].score - 1e-6 if everything[1].score is not None else 0.0
    assert call(ranker, query=QUERY, documents=documents, score_threshold=threshold) == everything[:2]
    ranker.top_k, ranker.score_threshold = 2, 1e9
    assert call(ranker, query=QUERY, documents=documents) == []
    assert call(ranker, query=QUERY, documents=documents, top_k=1, score_threshold=threshold) == everything[:1]
    with pytest.raises(ValueError, match="top_k is 0"):
        call(ranker, query=QUERY, documents=documents, top_k=0)


@both
def test_no_documents_give_none_and_duplicates_and_empty_ones_stay(
    ranker: TritonRanker, documents: Documents, call: Run
) -> None:
    assert call(ranker, query=QUERY, documents=[]) == []
    ranked = call(ranker, query=QUERY, documents=[*documents[:3], documents[1], Document(id="none", content=None)])
    assert sorted(ids(ranked)) == ["none", "p0", "p1", "p1", "p2"]


@both
def test_meta_fields_are_read_before_the_content(
    server: TritonServer, demo_client: RerankClient, passages: list[str], call: Run
) -> None:
    ranker = TritonRanker(
        MODEL,
        target=server.grpc_target,
        timeout_s=60.0,
        meta_fields_to_embed=["title", "none", "empty", "page"],
        embedding_separator=" | ",
    )
    meta = {"title": "gzip", "page": 7, "empty": "", "other": "left out"}
    ranked = call(ranker, query=QUERY, documents=[Document(content="It compresses one file.", meta=meta)])
    (score,) = demo_client.score(QUERY, ["gzip | 7 | It compresses one file."])
    assert ranked[0].score == pytest.approx(score, abs=1e-6)
    assert (ranked[0].content, ranked[0].meta) == ("It compresses one file.", meta)


def pipeline_of(ranker: TritonRanker, documents: Documents) -> Pipeline:
    """A retriever that finds everything, the ranker, and a component after it."""
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    pipeline = Pipeline()
    pipeline.add_component("retriever", FilterRetriever(store))
    pipeline.add_component("ranker", ranker)
    pipeline.add_component("after", DocumentJoiner(sort_by_score=False))
    pipeline.connect("retriever", "ranker.documents")
    pipeline.connect("ranker", "after")
    return pipeline


def asked(query: str) -> dict[str, Any]:
    return {"retriever": {}, "ranker": {"query": query}}


def test_a_pipeline_sync_and_async_and_again_from_yaml(
    ranker: TritonRanker,
    documents: Documents,
    demo_client: RerankClient,
    passages: list[str],
    example_queries: list[dict[str, Any]],
) -> None:
    ranker.top_k = 4
    pipeline = pipeline_of(ranker, documents)
    for example in example_queries:
        expected = [f"p{place.index}" for place in demo_client.rerank(example["query"], passages, top_k=4)]
        assert expected[0] == f"p{example['answer']}"
        assert ids(pipeline.run(asked(example["query"]))["after"]["documents"]) == expected
        assert ids(asyncio.run(pipeline.run_async(asked(example["query"])))["after"]["documents"]) == expected
    pipeline.remove_component("retriever")  # YAML does not keep what is in an in-memory store
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["triton_rerank.*"])
    again = loaded.run({"ranker": {"query": QUERY, "documents": documents}})["after"]["documents"]
    assert ids(again) == ids(ranker.run(QUERY, documents)["documents"])


def test_a_closed_pipeline_opens_new_connections(ranker: TritonRanker, documents: Documents) -> None:
    pipeline = pipeline_of(ranker, documents)
    expected = pipeline.run(asked(QUERY))
    pipeline.close()
    assert pipeline.run(asked(QUERY)) == expected

    async def run_and_close() -> dict[str, Any]:
        answer = await pipeline.run_async(asked(QUERY))
        await pipeline.close_async()
        return answer

    assert asyncio.run(run_and_close()) == expected
    assert asyncio.run(run_and_close()) == expected


def test_serialisation_round_trips_and_refuses_a_scorer(nobody: TritonScorer) -> None:
    ranker = TritonRanker(MODEL, target="127.0.0.1:8001", top_k=5, score_threshold=0.1, meta_fields_to_embed=["title"])
    data = ranker.to_dict()
    assert data["type"] == "triton_rerank.integrations.haystack.TritonRanker"
    assert data["init_parameters"] == {
        "model": MODEL,
        "target": "127.0.0.1:8001",
        "scorer": None,
        "top_k": 5,
        "score_threshold": 0.1,
        "timeout_s": 10.0,
        "meta_fields_to_embed": ["title"],
        "embedding_separator": "\n",
        "max_length": None,
        "max_query_tokens": None,
        "instruction": None,
        "keep_retrieval_score": False,
    }
    assert TritonRanker.from_dict(data).to_dict() == data
    pipeline = Pipeline()
    pipeline.add_component("ranker", TritonRanker(scorer=nobody))
    with pytest.raises(SerializationError, match="TritonScorer.*scorer"):
        pipeline.dumps()


@both
def test_errors_are_the_clients_own(nobody: TritonScorer, documents: Documents, call: Run) -> None:
    ranker = TritonRanker(scorer=nobody)
    with pytest.raises(ServerUnavailableError):
        call(ranker, query=QUERY, documents=documents)
    with pytest.raises(InvalidRequestError, match="query is blank"):
        call(ranker, query=" ", documents=documents)
    with pytest.raises(ConfigurationError):
        TritonRanker().warm_up()


@both
def test_the_first_stages_order_is_seen_to_be_degraded(nobody: TritonScorer, documents: Documents, call: Run) -> None:
    before = copy.deepcopy(documents)
    ranked = call(TritonRanker(scorer=FallbackScorer([nobody]), top_k=2), query=QUERY, documents=documents)
    assert [(document.id, document.score) for document in ranked] == [("p0", None), ("p1", None)]
    assert all("ServerUnavailableError" in document.meta[DEGRADED_KEY] for document in ranked)
    assert documents == before


@both
def test_another_models_order_is_seen_to_be_degraded_and_only_that(
    nobody: TritonScorer, server: TritonServer, ranker: TritonRanker, documents: Documents, call: Run
) -> None:
    chain = FallbackScorer([nobody, TritonScorer(server.grpc_target, MODEL)])
    ranked = call(TritonRanker(scorer=chain, timeout_s=60.0), query=QUERY, documents=documents)
    assert all(document.score is not None and DEGRADED_KEY in document.meta for document in ranked)
    again = call(ranker, query=QUERY, documents=ranked)
    assert again[0].id == ranked[0].id
    assert not any(DEGRADED_KEY in document.meta for document in again)
