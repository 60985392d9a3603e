"""What the components of the frameworks do beside reranking, in the real libraries and without a server."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from typing import Any

import numpy as np
import pytest
from haystack import Document as HaystackDocument
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from triton_rerank import InvalidRequestError
from triton_rerank.integrations import haystack, langchain, llama_index
from triton_rerank.testing import FakeScorer

QUERY = "a cat"
TEXTS = {"a dog barks": 0.9, "a cat sleeps": 0.1}  # with the retriever's scores
Kept = list[tuple[str, Any]]


def scorer() -> FakeScorer:
    return FakeScorer({"a dog barks": -1.0, "a cat sleeps": 2.0})


def in_langchain(key: str, **options: Any) -> Kept:
    documents = [LangChainDocument(text, metadata={"relevance_score": score, "id": 1}) for text, score in TEXTS.items()]
    reranker = langchain.TritonRerank(scorer=scorer(), **options)
    ranked = reranker.compress_documents(documents, QUERY)
    again = asyncio.run(reranker.acompress_documents(documents, QUERY))
    assert [document.metadata for document in again] == [document.metadata for document in ranked]
    assert [document.metadata["relevance_score"] for document in ranked] == [2.0, -1.0]
    assert [document.metadata for document in documents] == [
        {"relevance_score": score, "id": 1} for score in TEXTS.values()
    ]
    return [(document.page_content, document.metadata.get(key)) for document in ranked]


def in_llama_index(key: str, **options: Any) -> Kept:
    nodes = [NodeWithScore(node=TextNode(text=text), score=score) for text, score in TEXTS.items()]
    reranker = llama_index.TritonRerank(scorer=scorer(), **options)
    ranked = reranker.postprocess_nodes(nodes, QueryBundle(QUERY))
    again = asyncio.run(reranker.apostprocess_nodes(nodes, QueryBundle(QUERY)))
    assert [(node.score, node.metadata) for node in again] == [(node.score, node.metadata) for node in ranked]
    assert [node.score for node in ranked] == [2.0, -1.0]
    assert [node.metadata for node in nodes] == [{}, {}], "the caller's nodes stay as they were"
    assert {node.node.get_content(metadata_mode=mode) for node in ranked for mode in MetadataMode} == set(TEXTS) | {
        node.node.get_content(metadata_mode=MetadataMode.ALL) for node in ranked
    }
    return [(node.text, node.metadata.get(key)) for node in ranked]


def in_haystack(key: str, **options: Any) -> Kept:
    documents = [HaystackDocument(content=text, score=score) for text, score in TEXTS.items()]
    ranker = haystack.TritonRanker(scorer=scorer(), **options)
    ranked = ranker.run(QUERY, documents)["documents"]
    again = asyncio.run(ranker.run_async(QUERY, documents))["documents"]
    assert [(document.score, document.meta) for document in again] == [(d.score, d.meta) for d in ranked]
    assert [document.score for document in ranked] == [2.0, -1.0]
    assert [document.meta for document in documents] == [{}, {}]
    return [(str(document.content), document.meta.get(key)) for document in ranked]


each = pytest.mark.parametrize("kept", [in_langchain, in_llama_index, in_haystack])


@each
def test_the_retrievers_score_is_kept_where_the_caller_says(kept: Any) -> None:
    """run-llama/llama_index#10194: the reranker wrote over the retriever's score."""
    expected = [("a cat sleeps", 0.1), ("a dog barks", 0.9)]
    assert kept("before", keep_retrieval_score="before") == expected
    assert kept("retrieval_score", keep_retrieval_score=True) == expected


@each
def test_no_key_is_added_unless_it_is_asked_for(kept: Any) -> None:
    assert kept("retrieval_score") == [("a cat sleeps", None), ("a dog barks", None)]


@pytest.mark.parametrize("module", [langchain, llama_index])
def test_bounds_reach_the_scorer_and_may_be_numpys(module: Any) -> None:
    fake = scorer()
    bounds = {"max_length": np.int64(9), "max_query_tokens": np.int64(4), "top_n": np.int64(1)}
    told = {"instruction": "find a tool"}
    reranker = module.TritonRerank(scorer=fake, timeout_s=np.float32(2), min_score=np.float64(0), **bounds, **told)
    if module is langchain:
        assert len(reranker.compress_documents([LangChainDocument(text) for text in TEXTS], QUERY)) == 1
    else:
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
        assert len(reranker.postprocess_nodes(nodes, QueryBundle(QUERY))) == 1
    assert (fake.requests[0].max_length, fake.requests[0].max_query_tokens) == (9, 4)
    assert fake.requests[0].instruction == "find a tool"
    with pytest.raises(ValueError, match="top_n"):
        module.TritonRerank(scorer=fake, top_n=0)


def test_haystacks_bounds_reach_the_scorer_and_are_written_as_pythons() -> None:
    fake = scorer()
    bounds: dict[str, Any] = {"max_length": np.int64(9), "max_query_tokens": np.int64(4), "top_k": np.int64(1)}
    ranker = haystack.TritonRanker(scorer=fake, instruction="find a tool", **bounds)
    assert len(ranker.run(QUERY, [HaystackDocument(content=text) for text in TEXTS])["documents"]) == 1
    assert (fake.requests[0].max_length, fake.requests[0].max_query_tokens) == (9, 4)
    assert fake.requests[0].instruction == "find a tool"
    told = haystack.TritonRanker("m", **bounds).to_dict()["init_parameters"]
    assert {type(told[name]) for name in bounds} == {int}
    with pytest.raises(InvalidRequestError, match="max_query_tokens is 0"):
        haystack.TritonRanker(scorer=fake, max_query_tokens=0).run(QUERY, [HaystackDocument(content="a")])


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_framework_that_is_not_installed_is_named_with_its_extra(
    module: str, framework: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = f"triton_rerank.integrations.{module}"
    for name in [name for name in sys.modules if name == ours or name.startswith(f"{framework}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"pip install 'triton-rerank[{extra}]'")):
        importlib.import_module(ours)
