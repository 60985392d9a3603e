"""Jina's rerank endpoint, whose dialect vLLM and Infinity speak too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_rerank.hosted.dialect import Answer, Dialect, Question, field
from triton_rerank.hosted.http import HostedScorer


def _body(question: Question) -> dict[str, Any]:
    return {
        "model": question.model,
        "query": question.query,
        "documents": list(question.documents),
        "top_n": len(question.documents),  # some servers of this dialect refuse a request without it
        "return_documents": False,  # the default changed once
    }


def _answer(payload: Mapping[str, Any]) -> Answer:
    return Answer(
        rows=payload.get("results"),
        token_count=field(payload, "usage", "total_tokens"),
        model=payload.get("model"),
    )


class JinaScorer(HostedScorer):
    """Scores through Jina, or through a server that speaks its dialect; see `HostedScorer` for the arguments.

    A call's ``max_`` lengths are ignored: the dialect has no such parameter. Models that read a list as a whole, as
    jina-reranker-v3 does, score a document among its neighbours; of lists over 1,000 documents, which are split, their
    scores compare less well.
    """

    dialect = Dialect(
        provider="Jina",
        base_url="https://api.jina.ai",
        path="/v1/rerank",
        key_variable="JINA_API_KEY",
        max_documents=1000,  # it states no bound; as the others, and under the 2,048 of Infinity
        body=_body,
        answer=_answer,
    )
