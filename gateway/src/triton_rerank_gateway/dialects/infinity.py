"""Infinity: plain documents, ``raw_scores``. Its client wants a list as ``detail`` of a 422, "rerank" as ``object``."""

from __future__ import annotations

from triton_rerank_gateway.answered import Answered, Row
from triton_rerank_gateway.dialects import base
from triton_rerank_gateway.failures import STATUSES, GatewayError
from triton_rerank_gateway.fields import Fields
from triton_rerank_gateway.question import Part, Question, read_extras

_INVALID = ("invalid", "empty", "too_large")


def _read(body: Fields) -> Question:
    texts, given = body.documents("documents")
    return Question(
        parts=(Part(body.query().strip(), texts),),
        given=given,
        model=body.text("model"),
        top_k=body.count("top_n"),
        return_documents=body.flag("return_documents"),
        raw_scores=body.flag("raw_scores"),
        extras=read_extras(body),
    )


def _result(answered: Answered, row: Row) -> base.Json:
    found: base.Json = {"relevance_score": row.score, "index": row.index, **base.result_extras(answered, row)}
    if answered.question.return_documents:
        found["document"] = base.plain_document(answered, row)
    return found


def _answer(answered: Answered) -> base.Json:
    return {
        "object": "rerank",
        "results": [_result(answered, row) for row in answered.rows()],
        "model": answered.model,
        "usage": base.usage(answered),
        "id": f"infinity-{answered.request_id}",
        "created": answered.created,
        **base.answer_extras(answered),
    }


def _error(failure: GatewayError) -> base.Json:
    if failure.kind in _INVALID:
        return {"detail": [{"loc": ["body"], "msg": failure.message, "type": "value_error"}]}
    if failure.kind == "unauthorized":
        return {"detail": failure.message}
    return {"error": base.openai_error(failure, _STATUSES.get(failure.kind, STATUSES[failure.kind]))}


_STATUSES = {"invalid": 422, "empty": 422, "too_large": 422, "unknown_model": 400}
INFINITY = base.Dialect(
    "infinity",
    _read,
    _answer,
    _error,
    base.schema(
        ["query", "documents"],
        query=base.TEXT,
        documents=base.TEXTS,
        model=base.WORD,
        top_n=base.COUNT,
        return_documents=base.FLAG,
        raw_scores=base.FLAG,
    ),
    _STATUSES,  # type: ignore[arg-type]
)
