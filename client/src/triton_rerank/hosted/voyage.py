"""Voyage's rerank endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_rerank.hosted.dialect import Answer, Dialect, Question, field
from triton_rerank.hosted.http import HostedScorer


def _body(question: Question) -> dict[str, Any]:
    return {
        "model": question.model,
        "query": question.query,
        # it refuses a list with an empty text; a space is accepted and keeps the document's place
        "documents": [document or " " for document in question.documents],
        "top_k": len(question.documents),
        "return_documents": False,
        "truncation": True,
    }


def _answer(payload: Mapping[str, Any]) -> Answer:
    return Answer(
        rows=payload.get("data"),
        token_count=field(payload, "usage", "total_tokens"),
        model=payload.get("model"),
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
        body=_body,
        answer=_answer,
    )
