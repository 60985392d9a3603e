"""Cohere, Jina and Voyage: a scorer each, made of its dialect."""

from __future__ import annotations

from triton_rerank.hosted.dialect import Dialect
from triton_rerank.hosted.http import HostedScorer


class CohereScorer(HostedScorer):
    """Scores through Cohere, or through a server that speaks its dialect; see `HostedScorer` for the arguments.

    ``max_document_tokens`` of a call, or else its ``max_length``, is sent as ``max_tokens_per_doc``.
    """

    dialect = Dialect(
        provider="Cohere",
        base_url="https://api.cohere.com",
        path="/v2/rerank",
        key_variable="COHERE_API_KEY",
        max_documents=1000,  # what it advises; it refuses 10,000 chunks of documents
        max_length="max_tokens_per_doc",
        tokens=("meta", "tokens", "input_tokens"),  # told to some accounts only: it bills by searches
        tells_model=False,
    )


class JinaScorer(HostedScorer):
    """Scores through Jina, or through a server that speaks its dialect; see `HostedScorer` for the arguments.

    A call's ``max_`` lengths are ignored: the dialect has no such parameter. Models that read a list as a whole, as
    jina-reranker-v3 does, score a document among its neighbours; of lists over 1,000 documents, which are split, their
    scores compare less well. vLLM and Infinity speak this dialect too.
    """

    dialect = Dialect(
        provider="Jina",
        base_url="https://api.jina.ai",
        path="/v1/rerank",
        key_variable="JINA_API_KEY",
        max_documents=1000,  # it states no bound; as the others, and under the 2,048 of Infinity
        settings={"return_documents": False},  # the default changed once
    )


class VoyageScorer(HostedScorer):
    """Scores through Voyage, or through a server that speaks its dialect; see `HostedScorer` for the arguments.

    A call's ``max_`` lengths are ignored: the dialect has no such parameter, and cuts texts at the model's own bound.
    """

    dialect = Dialect(
        provider="Voyage",
        base_url="https://api.voyageai.com",
        path="/v1/rerank",
        key_variable="VOYAGE_API_KEY",
        max_documents=1000,
        wanted="top_k",
        settings={"return_documents": False, "truncation": True},
        empty=" ",  # it refuses a list with an empty text; a space is accepted and keeps the document's place
        rows="data",
    )
