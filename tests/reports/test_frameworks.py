"""LangChain, LlamaIndex and Haystack: what a reranker must not do to the documents that it was given."""

from __future__ import annotations

import copy

import pytest
from haystack import Document as HaystackDocument
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from triton_rerank.integrations.haystack import TritonRanker
from triton_rerank.integrations.langchain import TritonRerank as LangChainRerank
from triton_rerank.integrations.llama_index import TritonRerank as LlamaIndexRerank
from triton_rerank.testing import FakeScorer

SCORES = {"fair": 1.0, "best": 4.0, "good": 2.0}


def langchain_documents() -> list[Document]:
    return [Document(page_content=text, metadata={"source": {"page": n}}, id=text) for n, text in enumerate(SCORES)]


def test_langchains_documents_are_not_changed_in_place() -> None:
    """langchain-ai/langchain-nvidia#343: a second call overwrote the scores of what the first had returned."""
    documents = langchain_documents()
    before = copy.deepcopy(documents)
    reranker = LangChainRerank(scorer=FakeScorer(SCORES))
    first = reranker.compress_documents(documents, "q")
    again = LangChainRerank(scorer=FakeScorer(dict.fromkeys(SCORES, 7.0))).compress_documents(documents, "q")
    assert documents == before
    assert [document.metadata["relevance_score"] for document in first] == [4.0, 2.0, 1.0]
    assert [document.metadata["relevance_score"] for document in again] == [7.0, 7.0, 7.0]


def test_langchains_metadata_and_ids_stay() -> None:
    """langchain-ai/langchain#19142: a reranker dropped the documents' metadata."""
    (best, *_) = LangChainRerank(scorer=FakeScorer(SCORES)).compress_documents(langchain_documents(), "q")
    assert (best.page_content, best.id, best.metadata["source"]) == ("best", "best", {"page": 1})


def test_a_score_at_the_threshold_is_kept() -> None:
    """langchain-ai/langchain#24016: a least score that a document had exactly left it out."""
    reranker = LangChainRerank(scorer=FakeScorer(SCORES), min_score=2.0)
    assert [document.page_content for document in reranker.compress_documents(langchain_documents(), "q")] == [
        "best",
        "good",
    ]


def test_scores_of_an_identity_model_are_taken_as_they_are() -> None:
    """elastic/elasticsearch#118483, vectorize-io/hindsight#1512: scores below zero were lifted, and scores that were
    between 0 and 1 already went through a sigmoid once more."""
    for scores in ({"a": -0.5, "b": -7.25, "c": -3.0}, {"a": 0.0029, "b": 0.0003, "c": 0.0}):
        documents = [HaystackDocument(content=text) for text in scores]
        ranked = TritonRanker(scorer=FakeScorer(scores)).run(query="q", documents=documents)["documents"]
        assert {document.content: document.score for document in ranked} == pytest.approx(scores)
        assert [document.score for document in ranked] == pytest.approx(sorted(scores.values(), reverse=True))


def test_a_haystack_document_without_content_is_an_empty_text() -> None:
    """own: a document of an image or a table has no content; other rankers failed inside."""
    documents = [HaystackDocument(content="best"), HaystackDocument(content=None), HaystackDocument(content="fair")]
    ranked = TritonRanker(scorer=FakeScorer({**SCORES, "": 3.0})).run(query="q", documents=documents)["documents"]
    assert [document.content for document in ranked] == ["best", None, "fair"]


def test_a_llama_index_node_is_given_back_with_its_own_score() -> None:
    """run-llama/llama_index#12323: an index of the reranker pointed outside of the nodes that it was given."""
    nodes = [NodeWithScore(node=TextNode(text=text, id_=text), score=0.5) for text in SCORES]
    ranked = LlamaIndexRerank(scorer=FakeScorer(SCORES), top_n=10).postprocess_nodes(nodes, QueryBundle("q"))
    assert [(node.node_id, node.score) for node in ranked] == [("best", 4.0), ("good", 2.0), ("fair", 1.0)]
    assert [node.score for node in nodes] == [0.5] * 3
