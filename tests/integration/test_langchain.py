"""The document compressor: LangChain's own classes, a real Triton."""

from __future__ import annotations

import asyncio
import copy
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest

os.environ.update(LANGSMITH_TRACING="false", LANGCHAIN_TRACING_V2="false")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from triton_rerank.client import RerankClient
from triton_rerank.errors import ConfigurationError, InvalidRequestError, ServerUnavailableError
from triton_rerank.fallback.chain import FallbackScorer
from triton_rerank.integrations import DEGRADED_KEY
from triton_rerank.integrations.langchain import TritonRerank
from triton_rerank.triton.scorer import TritonScorer
from triton_rerank_server import TritonServer

MODEL = "minilm-l6-demo"
QUERY = "how do I make a file smaller?"

Compress: TypeAlias = Callable[[TritonRerank, Sequence[Document], str], Sequence[Document]]


def compress(reranker: TritonRerank, documents: Sequence[Document], query: str) -> Sequence[Document]:
    return reranker.compress_documents(documents, query)


def acompress(reranker: TritonRerank, documents: Sequence[Document], query: str) -> Sequence[Document]:
    return asyncio.run(reranker.acompress_documents(documents, query))


both = pytest.mark.parametrize("call", [compress, acompress])


@pytest.fixture(autouse=True)
def no_names_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LangSmith, or whatever else would phone home, needs the address of a host; recorded, since it may hide errors."""
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
def documents(passages: list[str]) -> list[Document]:
    return [Document(passage, id=f"p{i}", metadata={"page": i}) for i, passage in enumerate(passages)]


@pytest.fixture
def nobody() -> TritonScorer:
    """A server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return TritonScorer(f"127.0.0.1:{probe.getsockname()[1]}", MODEL)


@both
def test_order_scores_and_metadata_are_right(
    reranker: TritonRerank, documents: list[Document], demo_client: RerankClient, passages: list[str], call: Compress
) -> None:
    before = copy.deepcopy(documents)
    expected = demo_client.rerank(QUERY, passages)
    ranked = call(reranker, documents, QUERY)
    assert [document.id for document in ranked] == [f"p{place.index}" for place in expected]
    assert [document.page_content for document in ranked] == [place.document for place in expected]
    for document, place in zip(ranked, expected, strict=True):
        assert document.metadata == {"page": place.index, "relevance_score": pytest.approx(place.score, abs=1e-6)}
    assert documents == before


@both
def test_top_n_and_min_score(reranker: TritonRerank, documents: list[Document], call: Compress) -> None:
    everything = call(reranker, documents, QUERY)
    reranker.top_n = 3
    assert [document.id for document in call(reranker, documents, QUERY)] == [d.id for d in everything[:3]]
    reranker.top_n, reranker.min_score = None, everything[1].metadata["relevance_score"] - 1e-6
    assert [document.id for document in call(reranker, documents, QUERY)] == [d.id for d in everything[:2]]


@both
def test_no_documents_give_none_and_duplicates_stay(
    reranker: TritonRerank, documents: list[Document], call: Compress
) -> None:
    assert call(reranker, [], QUERY) == []
    twice = [*documents[:3], documents[1].model_copy(update={"id": "again"})]
    ranked = call(reranker, twice, QUERY)
    assert sorted(str(document.id) for document in ranked) == ["again", "p0", "p1", "p2"]
    places = {document.id: place for place, document in enumerate(ranked)}
    assert places["again"] == places["p1"] + 1


def test_a_chain_of_runnables(
    reranker: TritonRerank,
    documents: list[Document],
    demo_client: RerankClient,
    passages: list[str],
    example_queries: list[dict[str, Any]],
) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(documents)
    reranker.top_n = 4
    chain: Runnable[str, Sequence[Document]] = RunnableParallel(
        query=RunnablePassthrough(), documents=store.as_retriever(search_kwargs={"k": len(documents)})
    ) | RunnableLambda(
        lambda asked: reranker.compress_documents(asked["documents"], asked["query"]),
        afunc=lambda asked: reranker.acompress_documents(asked["documents"], asked["query"]),
    )
    queries = [example["query"] for example in example_queries]
    expected = [[f"p{place.index}" for place in demo_client.rerank(query, passages, top_k=4)] for query in queries]
    assert [ids[0] for ids in expected] == [f"p{example['answer']}" for example in example_queries]

    async def one_by_one() -> list[Sequence[Document]]:  # in int8, who shares a batch moves scores a little
        return [await chain.ainvoke(query) for query in queries]

    assert [[document.id for document in ranked] for ranked in map(chain.invoke, queries)] == expected
    assert [[document.id for document in ranked] for ranked in asyncio.run(one_by_one())] == expected


@both
def test_errors_are_the_clients_own(nobody: TritonScorer, documents: list[Document], call: Compress) -> None:
    reranker = TritonRerank(scorer=nobody)
    with pytest.raises(ServerUnavailableError):
        call(reranker, documents, QUERY)
    with pytest.raises(InvalidRequestError, match="query is blank"):
        call(reranker, documents, " ")


@both
def test_the_first_stages_order_is_seen_to_be_degraded(
    nobody: TritonScorer, documents: list[Document], call: Compress
) -> None:
    documents[0].metadata["relevance_score"] = 0.5  # of an earlier reranker
    ranked = call(TritonRerank(scorer=FallbackScorer([nobody]), top_n=2), documents, QUERY)
    assert [document.id for document in ranked] == ["p0", "p1"]
    for page, document in enumerate(ranked):
        assert "ServerUnavailableError" in document.metadata.pop(DEGRADED_KEY)
        assert document.metadata == {"page": page}
    assert documents[0].metadata == {"page": 0, "relevance_score": 0.5}


@both
def test_another_models_order_is_seen_to_be_degraded_and_only_that(
    nobody: TritonScorer, server: TritonServer, reranker: TritonRerank, documents: list[Document], call: Compress
) -> None:
    chain = FallbackScorer([nobody, TritonScorer(server.grpc_target, MODEL)])
    ranked = call(TritonRerank(scorer=chain, timeout_s=60.0), documents, QUERY)
    assert all({"relevance_score", DEGRADED_KEY} <= set(document.metadata) for document in ranked)
    again = call(reranker, ranked, QUERY)
    assert again[0].id == ranked[0].id
    assert not any(DEGRADED_KEY in document.metadata for document in again)


def test_arguments_that_do_not_fit_are_refused_at_once(nobody: TritonScorer) -> None:
    for arguments in ({}, {"model": MODEL, "scorer": nobody}, {"model": MODEL, "target": "http://localhost"}):
        with pytest.raises(ConfigurationError):
            TritonRerank(**arguments)
    for wrong in ({"top_k": 3}, {"top_n": 0}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TritonRerank(model=MODEL, **wrong)


def test_the_client_alone_imports_no_framework() -> None:
    code = (
        "import sys, triton_rerank, triton_rerank.aio, triton_rerank.integrations\n"
        "print({'langchain_core', 'llama_index', 'haystack', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
