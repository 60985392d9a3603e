"""``/v1/rerank`` and ``/rerank``, where Cohere v1, Jina, vLLM and Xinference cannot be told apart: one answer for all.

It has what each of their clients needs: Haystack ``model`` and ``usage``, Cohere ``meta``, Xinference both. An error
has the same plain string as ``message`` (Cohere) and ``detail`` (Jina, Haystack, LlamaIndex), and an object as
``error``.
"""

from __future__ import annotations

from triton_rerank_gateway.answered import Answered, Row
from triton_rerank_gateway.dialects import base
from triton_rerank_gateway.failures import STATUSES, GatewayError
from triton_rerank_gateway.fields import Fields, wrong
from triton_rerank_gateway.question import Part, Question, read_extras

_STATUSES = base.NO_413


def read(body: Fields) -> Question:
    """A query, documents (strings or objects), and what the four dialects have beside them."""
    texts, given = body.documents("documents", rank_fields=_rank_fields(body))
    return Question(
        parts=(Part(body.query(), texts),),
        given=given,
        model=body.text("model"),
        top_k=body.count("top_n"),
        return_documents=body.flag("return_documents"),
        truncate=body.text("truncation_side") != "left",
        max_query_tokens=body.count("max_tokens_per_query"),
        max_document_tokens=body.count("max_tokens_per_doc"),
        priority=body.whole("priority", least=0) or 0,
        extras=read_extras(body),
    )


def result(answered: Answered, row: Row) -> base.Json:
    """One result; ``document`` is an object, and absent where it was not asked for."""
    found: base.Json = {"index": row.index, "relevance_score": row.score, **base.result_extras(answered, row)}
    if answered.question.return_documents:
        found["document"] = base.whole_document(answered, row)
    return found


def answer(answered: Answered) -> base.Json:
    """Cohere's ``meta`` and Jina's ``usage`` in one; no ``object``, over which Infinity's client falls."""
    return {
        "id": answered.request_id,
        "model": answered.model,
        "results": [result(answered, row) for row in answered.rows()],
        "usage": base.usage(answered),
        "meta": meta(answered, "1"),
        **base.answer_extras(answered),
    }


def meta(answered: Answered, version: str) -> base.Json:
    """Cohere's."""
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": base.search_units(answered)},
        "tokens": {"input_tokens": answered.token_count, "output_tokens": 0},
    }


def error(failure: GatewayError) -> base.Json:
    """One text under each name that a client looks at."""
    status = _STATUSES.get(failure.kind, STATUSES[failure.kind])
    text = failure.message
    return {"message": text, "detail": text, "error": base.openai_error(failure, status)}


def _rank_fields(body: Fields) -> list[str]:
    names = body.get("rank_fields") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong("rank_fields", names, "it must be a list of the names of keys")
    return list(dict.fromkeys(names))  # a name again and again would make a text of any size of a small body


REQUEST = base.schema(
    ["query", "documents"],
    query=base.TEXT,
    documents=base.DOCUMENTS,
    model=base.WORD,
    top_n=base.COUNT,
    return_documents=base.FLAG,
    rank_fields={"type": ["array", "null"], "items": base.TEXT},
    max_tokens_per_doc=base.COUNT,
    max_tokens_per_query=base.COUNT,
    priority=base.COUNT,
)
V1_RERANK = base.Dialect("v1-rerank", read, answer, error, REQUEST, _STATUSES)
