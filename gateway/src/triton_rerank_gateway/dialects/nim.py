"""NVIDIA NIM: texts in objects, logits in the answer, everything ranked."""

from __future__ import annotations

from triton_rerank_gateway.answered import Answered, Row
from triton_rerank_gateway.dialects import base
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.fields import Fields, checked_query, wrong
from triton_rerank_gateway.question import Part, Question, read_extras


def _read(body: Fields) -> Question:
    query = body.get("query")
    texts, given = body.documents("passages")
    text = checked_query("query.text", query.get("text") if isinstance(query, dict) else query)
    truncate = body.text("truncate") or "END"
    if truncate not in ("NONE", "END"):
        raise wrong("truncate", truncate, "it must be NONE or END")
    return Question(
        parts=(Part(text, texts),),
        given=given,
        model=body.text("model"),
        top_k=body.count("top_n") or body.count("top_k"),
        raw_scores=True,
        truncate=truncate == "END",
        extras=read_extras(body),
    )


def _ranking(answered: Answered, row: Row) -> base.Json:
    extras = base.result_extras(answered, row)
    return {**extras, "index": row.index, "logit": row.score}


def _answer(answered: Answered) -> base.Json:
    return {
        "rankings": [_ranking(answered, row) for row in answered.rows()],
        "usage": base.usage(answered),
        **base.answer_extras(answered),
    }


def _error(failure: GatewayError) -> base.Json:
    return {"detail": failure.message}


_TEXT_OBJECT = {"type": "object", "required": ["text"], "properties": {"text": base.TEXT}}
NIM = base.Dialect(
    "nim",
    _read,
    _answer,
    _error,
    base.schema(
        ["query", "passages"],
        query=_TEXT_OBJECT,
        passages={"type": "array", "minItems": 1, "items": _TEXT_OBJECT},
        model=base.WORD,
        truncate={"enum": ["NONE", "END", None]},
        top_n=base.COUNT,
    ),
)
