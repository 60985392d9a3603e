"""Voyage: ``top_k``, results under ``data`` with plain documents; ``detail`` must be a string, or its SDK fails."""

from __future__ import annotations

from dataclasses import replace

from triton_rerank_gateway.answered import Answered, Row
from triton_rerank_gateway.dialects import base, v1_rerank
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.fields import Fields
from triton_rerank_gateway.question import Part, Question, read_extras


def _read(body: Fields) -> Question:
    texts, given = body.documents("documents")
    return Question(
        parts=(Part(body.query(), texts),),
        given=given,
        model=body.text("model"),
        top_k=body.count("top_k"),
        return_documents=body.flag("return_documents"),
        truncate=body.flag("truncation", default=True),
        extras=read_extras(body),
    )


def _result(answered: Answered, row: Row) -> base.Json:
    found: base.Json = {"index": row.index, "relevance_score": row.score, **base.result_extras(answered, row)}
    if answered.question.return_documents:
        found["document"] = base.plain_document(answered, row)
    return found


def _answer(answered: Answered) -> base.Json:
    return {
        "object": "list",
        "data": [_result(answered, row) for row in answered.rows()],
        "model": answered.model,
        "usage": base.usage(answered),
        **base.answer_extras(answered),
    }


def _both(answered: Answered) -> base.Json:
    """LiteLLM asks Voyage without ``top_k`` exactly as it asks Jina: both find their results."""
    return {**v1_rerank.answer(answered), "data": [_result(answered, row) for row in answered.rows()]}


def _error(failure: GatewayError) -> base.Json:
    return {"detail": failure.message}


# Its SDK has no class for 404.
VOYAGE = base.Dialect(
    "voyage",
    _read,
    _answer,
    _error,
    base.schema(
        ["query", "documents"],
        query=base.TEXT,
        documents=base.TEXTS,
        model=base.WORD,
        top_k=base.COUNT,
        return_documents=base.FLAG,
        truncation=base.FLAG,
    ),
    {**base.NO_413, "unknown_model": 400},
)
JINA_OR_VOYAGE = replace(v1_rerank.V1_RERANK, name="jina-or-voyage", answer=_both)
