"""The node postprocessor: LlamaIndex's own classes, a real Triton."""

from __future__ import annotations

import asyncio
import copy
import pickle
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # documented there
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import Field

from triton_rerank.client import RerankClient
from triton_rerank.errors import ConfigurationError, InvalidRequestError, ServerUnavailableError
from triton_rerank.fallback.chain import FallbackScorer
from triton_rerank.integrations import DEGRADED_KEY
from triton_rerank.integrations.llama_index import TritonRerank
from triton_rerank.triton.scorer import TritonScorer
from triton_rerank_server import TritonServer

MODEL = "minilm-l6-demo"
QUERY = "how do I make a file smaller?"

Nodes: TypeAlias = list[NodeWithScore]
Postprocess: TypeAlias = Callable[[TritonRerank, Nodes, str], Nodes]


def postprocess(reranker: TritonRerank, nodes: Nodes, query: str) -> Nodes:
    return reranker.postprocess_nodes(nodes, query_str=query)


def apostprocess(reranker: TritonRerank, nodes: Nodes, query: str) -> Nodes:
    return asyncio.run(reranker.apostprocess_nodes(nodes, QueryBundle(query)))


both = pytest.mark.parametrize("call", [postprocess, apostprocess])


@pytest.fixture(autouse=True)
def no_names_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever would phone home, or fetch a tokenizer, needs a host's address; recorded, since it may hide errors."""
    asked: list[object] = []
    look_up = socket.getaddrinfo

    def recorded(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", recorded)
    yield
    assert set(asked) <= {"127.0.0.1", "localhost"}


@pytest.fixture
def reranker(server: TritonServer) -> TritonRerank:
    return TritonRerank(target=server.grpc_target, model=MODEL, timeout_s=60.0)


@pytest.fixture
def nodes(passages: list[str]) -> Nodes:
    """Retrieved, with scores of the first stage; the page stands in prompts and not in embeddings."""
    return [
        NodeWithScore(
            node=TextNode(text=text, id_=f"p{i}", metadata={"page": i}, excluded_embed_metadata_keys=["page"]),
            score=1 / (i + 1),
        )
        for i, text in enumerate(passages)
    ]


@pytest.fixture
def nobody() -> TritonScorer:
    """A server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return TritonScorer(f"127.0.0.1:{probe.getsockname()[1]}", MODEL)


@both
def test_order_scores_and_metadata_are_right(
    reranker: TritonRerank, nodes: Nodes, demo_client: RerankClient, passages: list[str], call: Postprocess
) -> None:
    before = copy.deepcopy(nodes)
    expected = demo_client.rerank(QUERY, passages)
    ranked = call(reranker, nodes, QUERY)
    assert [(node.node_id, node.metadata) for node in ranked] == [(f"p{p.index}", {"page": p.index}) for p in expected]
    assert [node.score for node in ranked] == pytest.approx([place.score for place in expected], abs=1e-6)
    assert nodes == before


@both
def test_top_n_and_min_score(reranker: TritonRerank, nodes: Nodes, call: Postprocess) -> None:
    everything = call(reranker, nodes, QUERY)
    reranker.top_n = 3
    assert call(reranker, nodes, QUERY) == everything[:3]
    reranker.top_n, reranker.min_score = None, everything[1].get_score() - 1e-6
    assert call(reranker, nodes, QUERY) == everything[:2]


@both
def test_no_nodes_give_none_and_duplicates_stay(reranker: TritonRerank, nodes: Nodes, call: Postprocess) -> None:
    assert call(reranker, [], QUERY) == []
    ranked = call(reranker, [*nodes[:3], nodes[1]], QUERY)
    assert sorted(node.node_id for node in ranked) == ["p0", "p1", "p1", "p2"]


@both
def test_the_model_reads_what_an_embedding_model_would(
    reranker: TritonRerank, demo_client: RerankClient, call: Postprocess
) -> None:
    titled = TextNode(
        text="It compresses one file.",
        metadata={"title": "gzip", "page": 7},
        excluded_embed_metadata_keys=["page"],
    )
    read = "title: gzip\n\nIt compresses one file."
    assert titled.get_content(MetadataMode.EMBED) == read
    ranked = call(reranker, [NodeWithScore(node=titled), NodeWithScore(node=ImageNode(text="a cat"))], QUERY)
    assert [node.score for node in ranked] == pytest.approx(demo_client.score(QUERY, [read, "a cat"]), abs=1e-6)


def test_a_query_engine_without_a_language_model(
    reranker: TritonRerank,
    nodes: Nodes,
    demo_client: RerankClient,
    passages: list[str],
    example_queries: list[dict[str, Any]],
) -> None:
    reranker.top_n = 4
    index = VectorStoreIndex([node.node for node in nodes], embed_model=MockEmbedding(embed_dim=8))
    engine = RetrieverQueryEngine(
        index.as_retriever(similarity_top_k=len(nodes)), NoText(llm=MockLLM()), node_postprocessors=[reranker]
    )
    for example in example_queries:
        expected = [f"p{place.index}" for place in demo_client.rerank(example["query"], passages, top_k=4)]
        assert expected[0] == f"p{example['answer']}"
        assert [node.node_id for node in engine.query(example["query"]).source_nodes] == expected
        assert [node.node_id for node in asyncio.run(engine.aquery(example["query"])).source_nodes] == expected


class Events(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.seen.append(event)


@both
def test_tracers_see_the_call(server: TritonServer, nodes: Nodes, call: Postprocess) -> None:
    debug, events = LlamaDebugHandler(print_trace_on_end=False), Events()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(events)
    reranker = TritonRerank(
        target=server.grpc_target, model=MODEL, timeout_s=60.0, callback_manager=CallbackManager([debug])
    )
    try:
        ranked = call(reranker, nodes, QUERY)
    finally:
        dispatcher.event_handlers.remove(events)
    start, end = events.seen
    assert (start.model_name, start.top_n, start.nodes) == (MODEL, len(nodes), nodes)
    assert end.nodes == ranked
    ((began, ended),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert began.payload is not None
    assert ended.payload is not None
    assert (began.payload["query_str"], ended.payload["nodes"]) == (QUERY, ranked)


@both
def test_errors_are_the_clients_own(nobody: TritonScorer, nodes: Nodes, call: Postprocess) -> None:
    reranker = TritonRerank(scorer=nobody)
    with pytest.raises(ServerUnavailableError):
        call(reranker, nodes, QUERY)
    with pytest.raises(InvalidRequestError, match="query is blank"):
        call(reranker, nodes, " ")
    with pytest.raises(ValueError, match="query_bundle is None"):
        reranker.postprocess_nodes(nodes)
    with pytest.raises(InvalidRequestError, match="query_bundle is None"):
        asyncio.run(reranker.apostprocess_nodes([]))


@both
def test_the_first_stages_order_is_seen_to_be_degraded(nobody: TritonScorer, nodes: Nodes, call: Postprocess) -> None:
    before = copy.deepcopy(nodes)
    ranked = call(TritonRerank(scorer=FallbackScorer([nobody]), top_n=2), nodes, QUERY)
    assert [(node.node_id, node.score) for node in ranked] == [("p0", None), ("p1", None)]
    for node, was in zip(ranked, before, strict=False):
        assert "ServerUnavailableError" in node.metadata[DEGRADED_KEY]
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert node.get_content(mode) == was.get_content(mode)
    assert nodes == before


@both
def test_another_models_order_is_seen_to_be_degraded_and_only_that(
    nobody: TritonScorer, server: TritonServer, reranker: TritonRerank, nodes: Nodes, call: Postprocess
) -> None:
    chain = FallbackScorer([nobody, TritonScorer(server.grpc_target, MODEL)])
    ranked = call(TritonRerank(scorer=chain, timeout_s=60.0), nodes, QUERY)
    assert all(node.score is not None and DEGRADED_KEY in node.metadata for node in ranked)
    again = call(reranker, ranked, QUERY)
    assert again[0].node_id == ranked[0].node_id
    assert not any(DEGRADED_KEY in node.metadata for node in again)


def test_it_survives_serialisation_and_pickling(reranker: TritonRerank, nodes: Nodes) -> None:
    """run-llama/llama_index#9480, run-llama/llama_index#14860: a component failed once it was unpickled."""
    reranker.top_n = 2
    expected = reranker.postprocess_nodes(nodes, query_str=QUERY)
    for copied in (TritonRerank.from_dict(reranker.to_dict()), pickle.loads(pickle.dumps(reranker))):
        assert copied.postprocess_nodes(nodes, query_str=QUERY) == expected


def test_arguments_that_do_not_fit_are_refused_at_once(nobody: TritonScorer) -> None:
    for arguments in ({}, {"model": MODEL, "scorer": nobody}, {"model": MODEL, "target": "http://localhost"}):
        with pytest.raises(ConfigurationError):
            TritonRerank(**arguments)
    for wrong in ({"top_k": 3}, {"top_n": 0}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TritonRerank(model=MODEL, **wrong)
