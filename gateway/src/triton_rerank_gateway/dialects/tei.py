"""Text Embeddings Inference: a bare array, best first; errors with ``error`` and ``error_type``; timing headers."""

from __future__ import annotations

from collections.abc import Mapping

from triton_rerank_gateway.answered import Answered, Row
from triton_rerank_gateway.dialects import base
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.fields import Fields, checked_query, wrong
from triton_rerank_gateway.question import Part, Question, pairs, read_extras

_TYPES = {
    "invalid": "Validation",
    "empty": "Empty",
    "too_large": "Validation",
    "overloaded": "Overloaded",
    "unauthorized": "Unauthorized",
    "forbidden": "Forbidden",
    "unavailable": "Unhealthy",
    "deadline": "Unhealthy",
    "model_failed": "Backend",
    "no_reranker": "Backend",
    "internal": "Backend",
}


def _read(body: Fields) -> Question:
    texts, given = body.documents("texts")
    return Question(
        parts=(Part(body.query(), texts),),
        given=given,
        model=body.text("model"),
        top_k=body.count("top_n"),
        return_documents=body.flag("return_text"),
        raw_scores=body.flag("raw_scores"),
        truncate=_truncates(body),
        extras=read_extras(body),
    )


def _truncates(body: Fields) -> bool:
    """False where a pair that is too long must be an error: a cut on the left is none that we can make."""
    direction = (body.text("truncation_direction") or "right").lower()
    if direction not in ("left", "right"):
        raise wrong("truncation_direction", direction, "it must be Left or Right")
    return body.flag("truncate", default=True) and direction == "right"


def _result(answered: Answered, row: Row) -> base.Json:
    found: base.Json = {"index": row.index, "score": row.score, **base.result_extras(answered, row)}
    if answered.question.return_documents:
        found["text"] = base.plain_document(answered, row)
    return found


def _answer(answered: Answered) -> list[base.Json]:
    return [_result(answered, row) for row in answered.rows()]


def _error(failure: GatewayError) -> base.Json:
    return {"error": failure.message, "error_type": _TYPES.get(failure.kind, "Validation")}


def _headers(answered: Answered) -> Mapping[str, str]:
    """Milliseconds; tokenising happens in Triton and is part of the inference time."""
    characters = sum(len(part.query) + sum(map(len, part.documents)) for part in answered.question.parts)
    scoring_s = sum(result.timings.scoring_s for result in answered.results)
    return {
        "x-compute-type": "triton",
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(answered.token_count),
        "x-compute-time": _milliseconds(answered.total_s),
        "x-total-time": _milliseconds(answered.total_s),
        "x-tokenization-time": "0",
        "x-queue-time": _milliseconds(answered.waited_s),
        "x-inference-time": _milliseconds(scoring_s),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _read_predict(body: Fields) -> Question:
    """Pairs: ``["query", "text"]``, or a list of such."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list):
        raise wrong("inputs", inputs, "it must be a pair of query and text, or a list of pairs")
    if not inputs:
        raise GatewayError("empty", "inputs is empty: give at least one pair")
    asked = [inputs] if _is_single(inputs) else inputs
    for index, pair in enumerate(asked):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], str):
            raise wrong(f"inputs[{index}]", pair, "it must be a pair of query and text")
        checked_query(f"inputs[{index}][0]", pair[0])
    parts, places = pairs([pair[0] for pair in asked], [pair[1] for pair in asked])
    return Question(
        parts=parts,
        given=(inputs,),
        places=places,
        raw_scores=body.flag("raw_scores"),
        truncate=_truncates(body),
        extras=read_extras(body),
    )


def _is_single(inputs: object) -> bool:
    return isinstance(inputs, list) and len(inputs) == 2 and all(isinstance(text, str) for text in inputs)


def _answer_predict(answered: Answered) -> list[object]:
    labels: list[object] = [[{"score": score, "label": "LABEL_0"}] for score in answered.scores()]
    single = _is_single(answered.question.given[0])
    return labels[0] if single else labels  # type: ignore[return-value]


_OPTIONS = {
    "truncate": base.FLAG,
    "truncation_direction": {"enum": ["Left", "left", "Right", "right", None]},
    "raw_scores": base.FLAG,
}
_STATUSES = {"invalid": 422, "too_large": 413, "model_failed": 424, "no_reranker": 424}
TEI = base.Dialect(
    "tei",
    _read,
    _answer,
    _error,
    base.schema(["query", "texts"], query=base.TEXT, texts=base.TEXTS, return_text=base.FLAG, **_OPTIONS),
    _STATUSES,  # type: ignore[arg-type]
    _headers,
)
TEI_PREDICT = base.Dialect(
    "tei-predict",
    _read_predict,
    _answer_predict,
    _error,
    base.schema(
        ["inputs"],
        inputs={"type": "array", "minItems": 1, "items": {"anyOf": [base.TEXT, base.TEXTS]}},
        **_OPTIONS,
    ),
    _STATUSES,  # type: ignore[arg-type]
    _headers,
)


def info(model: str, max_length: int, max_documents: int, version: str) -> base.Json:
    """What ``/info`` says; Dify reads the one key of ``model_type``."""
    return {
        "model_id": model,
        "model_sha": None,
        "model_dtype": "float32",
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": 512,
        "max_input_length": max_length,
        "max_batch_tokens": max_length * max_documents,
        "max_batch_requests": None,
        "max_client_batch_size": max_documents,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": version,
        "sha": None,
        "docker_label": None,
    }
