"""vLLM: ``/rerank`` gives documents back unasked; ``/score`` scores one text against many, or pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from triton_rerank_gateway.answered import Answered, Row
from triton_rerank_gateway.dialects import base, v1_rerank
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.fields import Fields, checked_query, wrong
from triton_rerank_gateway.question import Question, pairs, read_extras


def _read(body: Fields) -> Question:
    question = v1_rerank.read(body)
    return replace(
        question,
        return_documents=body.flag("return_documents", default=True),
        raw_scores=not body.flag("use_activation", default=True),
    )


def _result(answered: Answered, row: Row) -> base.Json:
    found: base.Json = {"index": row.index, "relevance_score": row.score, **base.result_extras(answered, row)}
    if answered.question.return_documents:
        found["document"] = {**base.whole_document(answered, row), "multi_modal": None}
    return found


def _answer(answered: Answered) -> base.Json:
    return {
        "id": f"rerank-{answered.request_id}",
        "model": answered.model,
        "usage": base.usage(answered),
        "results": [_result(answered, row) for row in answered.rows()],
        **base.answer_extras(answered),
    }


def _error(failure: GatewayError) -> base.Json:
    return {"error": base.openai_error(failure, VLLM.status(failure))}


def _first(body: Fields, *names: str) -> tuple[str, Any]:
    """The first of some names that the body has."""
    name = next((name for name in names if body.get(name) is not None), names[0])
    return name, body.get(name)


def _read_score(body: Fields) -> Question:
    left_name, left = _first(body, "text_1", "queries")
    right_name, right = _first(body, "text_2", "documents", "items")
    documents = _texts(right_name, right)
    queries = _texts(left_name, left)
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise GatewayError(
            "invalid",
            f"{left_name} has {len(queries)} texts and {right_name} {len(documents)}: give one, or as many",
        )
    parts, places = pairs([checked_query(left_name, query) for query in queries], documents)
    return Question(
        parts=parts,
        places=places,
        model=body.text("model"),
        raw_scores=not body.flag("use_activation", default=True),
        extras=read_extras(body),
    )


def _texts(name: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise wrong(name, value, "it must be a text or a list of texts")
    if not texts:
        raise GatewayError("empty", f"{name} is empty: give at least one text")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise wrong(f"{name}[{index}]", text, "it must be a string")
    return texts


def _answer_score(answered: Answered) -> base.Json:
    rows = [{"index": index, "object": "score", "score": score} for index, score in enumerate(answered.scores())]
    return {
        "id": f"score-{answered.request_id}",
        "object": "list",
        "created": answered.created,
        "model": answered.model,
        "data": rows,
        "usage": base.usage(answered),
        **base.answer_extras(answered),
    }


VLLM = base.Dialect("vllm", _read, _answer, _error, v1_rerank.REQUEST, base.NO_413)
_TEXT_OR_TEXTS = {"anyOf": [base.TEXT, base.TEXTS]}
VLLM_SCORE = base.Dialect(
    "vllm-score",
    _read_score,
    _answer_score,
    _error,
    base.schema(
        ["text_1", "text_2"], text_1=_TEXT_OR_TEXTS, text_2=_TEXT_OR_TEXTS, model=base.WORD, use_activation=base.FLAG
    ),
    base.NO_413,
)
