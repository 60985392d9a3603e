"""What a dialect is: three functions and a schema. One file each; they share these few helpers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from triton_rerank_gateway.answered import Answered, Row
from triton_rerank_gateway.failures import STATUSES, GatewayError, Kind
from triton_rerank_gateway.fields import Fields
from triton_rerank_gateway.question import Question

Json = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """How one family of clients asks and is answered.

    Attributes:
        name: in metrics and logs.
        question: the request's fields -> what is asked; raises `GatewayError`.
        answer: what was said -> the answer's JSON.
        error: what went wrong -> the JSON of an error.
        request: JSON Schema of the request's body.
        statuses: where the dialect's status of a kind differs.
        headers: further headers of an answer.
    """

    name: str
    question: Callable[[Fields], Question]
    answer: Callable[[Answered], Any]
    error: Callable[[GatewayError], Json]
    request: Json
    statuses: Mapping[Kind, int] = field(default_factory=dict)
    headers: Callable[[Answered], Mapping[str, str]] = lambda _: {}

    def status(self, error: GatewayError) -> int:
        """HTTP status of an error."""
        return self.statuses.get(error.kind, STATUSES[error.kind])


# Cohere's and Voyage's clients have no class for 413; 400 is an "invalid request" to both.
NO_413: Mapping[Kind, int] = {"too_large": 400}


def result_extras(answered: Answered, row: Row) -> Json:
    """Fields of ours in one result, only when asked for; and the id of a document that has one."""
    extras, found = answered.question.extras, {}
    given = answered.question.given[row.index]
    if isinstance(given, dict) and "id" in given:
        found["id"] = given["id"]
    if extras.return_logits or extras.return_details:
        found["logit"] = row.logit
    if extras.return_details:
        found |= {"truncated": row.truncated, "best_chunk": row.best_chunk, "token_count": row.token_count}
    return found


def answer_extras(answered: Answered) -> Json:
    """Fields of ours beside the results: said when another than the first choice answered."""
    if not answered.degraded:
        return {}
    return {"degraded": True, "served_by": answered.served_by, "reason": answered.reason}


def whole_document(answered: Answered, row: Row) -> Any:
    """A document as ``{"text": …}``; an object that was given comes back whole."""
    given = answered.question.given[row.index]
    return given if isinstance(given, dict) else {"text": given}


def plain_document(answered: Answered, row: Row) -> str:
    """A document's text."""
    return answered.question.parts[0].documents[row.index]


def search_units(answered: Answered) -> int:
    """What Cohere bills: one for a query with up to 100 documents."""
    return max(1, -(-answered.question.n_pairs // 100))


def usage(answered: Answered) -> Json:
    """Tokens read, under both names that clients know."""
    return {"prompt_tokens": answered.token_count, "total_tokens": answered.token_count}


def openai_error(error: GatewayError, status: int) -> Json:
    """An error as OpenAI's API words it."""
    return {"message": error.message, "type": error.kind, "param": None, "code": status}


TEXT = {"type": "string"}
COUNT = {"type": ["integer", "null"], "minimum": 0}
FLAG = {"type": ["boolean", "null"]}
NUMBER = {"type": ["number", "null"]}
WORD = {"type": ["string", "null"]}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
DOCUMENTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [TEXT, {"type": "object", "properties": {"text": TEXT, "id": {}}, "required": ["text"]}],
    },
}


def schema(required: list[str], **properties: Any) -> Json:
    """JSON Schema of a request: the dialect's own fields, and those of ours."""
    ours = {
        "min_score": NUMBER,
        "timeout_ms": {"type": ["integer", "null"], "minimum": 1},
        "return_logits": FLAG,
        "return_details": FLAG,
        "max_chunks_per_doc": COUNT,
        "overlap_tokens": COUNT,
        "instruction": WORD,
    }
    return {"type": "object", "required": required, "properties": {**properties, **ours}}
