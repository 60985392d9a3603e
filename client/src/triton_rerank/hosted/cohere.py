"""Cohere's rerank endpoint, version 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_rerank.hosted.dialect import Answer, Dialect, Question, field
from triton_rerank.hosted.http import HostedScorer


def _body(question: Question) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": question.model,
        "query": question.query,
        "documents": list(question.documents),
        "top_n": len(question.documents),
    }
    if question.max_length is not None:
        body["max_tokens_per_doc"] = question.max_length
    return body


def _answer(payload: Mapping[str, Any]) -> Answer:
    # bills by searches; tokens are told to some accounts only, and the model to none
    return Answer(rows=payload.get("results"), token_count=field(payload, "meta", "tokens", "input_tokens"))


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
        body=_body,
        answer=_answer,
    )
