"""What differs between providers, as data, and what every answer must satisfy. Pure."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank.errors import InvalidResponseError

_MOST_TOKENS = 10**12  # a count that is larger, or no number, is no count


@dataclass(frozen=True, slots=True)
class Dialect:
    """One provider's rerank endpoint.

    Attributes:
        provider: its name in messages.
        base_url: where it is.
        path: of the endpoint, after ``base_url``.
        key_variable: environment variable that holds the API key.
        max_documents: most documents in one request; more are split.
        wanted: name of the number of results; all are wanted, and some servers refuse a request without it.
        max_length: name of the bound on a document's tokens; None if it has none.
        settings: what else is sent with every request.
        empty: what is sent for an empty document.
        rows: name of the answer's list, of objects with ``index`` and ``relevance_score``.
        tokens: names that lead to the number of tokens read.
        tells_model: the answer may have the name of the model under ``model``.
    """

    provider: str
    base_url: str
    path: str
    key_variable: str
    max_documents: int
    wanted: str = "top_n"
    max_length: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    empty: str = ""
    rows: str = "results"
    tokens: tuple[str, ...] = ("usage", "total_tokens")
    tells_model: bool = True

    def body(self, model: str, query: str, documents: Sequence[str], max_length: int | None) -> bytes:
        """The JSON of one request.

        Args:
            model: the provider's name of it.
            query: not blank.
            documents: at most ``max_documents``; all of them are to be scored.
            max_length: tokens of a document, None for the provider's own bound.
        """
        body = {
            "model": model,
            "query": query,
            "documents": [document or self.empty for document in documents],
            self.wanted: len(documents),
            **self.settings,
        }
        if self.max_length is not None and max_length is not None:
            body[self.max_length] = max_length
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Relevance:
    """A checked answer.

    Attributes:
        scores: float64 ``(n,)``, all finite, in the order of the documents sent.
        token_count: 0 if the provider does not tell.
        model: as the provider names it, else as it was asked for.
    """

    scores: npt.NDArray[np.float64]
    token_count: int
    model: str


def field(payload: object, *names: str) -> object:
    """Follow names into nested JSON objects; None where one is missing."""
    for name in names:
        payload = payload.get(name) if isinstance(payload, Mapping) else None
    return payload


def read_answer(dialect: Dialect, body: bytes, *, n_documents: int, model: str) -> Relevance:
    """Check the body of an answer.

    Args:
        dialect: of the provider that sent it.
        body: as received.
        n_documents: documents sent.
        model: model that was asked for.

    Raises:
        InvalidResponseError: no JSON object, or not exactly one finite score for every document.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidResponseError(f"the answer of {len(body)} bytes is no JSON; check base_url") from exc
    if not isinstance(payload, dict):
        raise InvalidResponseError(f"the answer is a JSON {type(payload).__name__}: an object was expected")
    tokens, named = field(payload, *dialect.tokens), payload.get("model") if dialect.tells_model else None
    return Relevance(
        scores=_scores(payload.get(dialect.rows), n_documents),
        token_count=int(tokens) if isinstance(tokens, int | float) and 0 < tokens < _MOST_TOKENS else 0,
        model=named if isinstance(named, str) and named else model,
    )


def _scores(rows: object, n_documents: int) -> npt.NDArray[np.float64]:
    if not isinstance(rows, list):
        raise InvalidResponseError("the answer has no list of results; check base_url and the model")
    if len(rows) != n_documents:
        raise InvalidResponseError(
            f"the answer has {len(rows)} results: one for each of {n_documents} documents is due"
        )
    scores = np.full(n_documents, np.nan)
    for rank, row in enumerate(rows):
        index = _index(row, rank, n_documents)
        if not np.isnan(scores[index]):
            raise InvalidResponseError(f"results[{rank}] has index {index}, which another result has too")
        scores[index] = _score(row, rank)
    return scores


def _index(row: object, rank: int, n_documents: int) -> int:
    index = field(row, "index")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_documents:
        raise InvalidResponseError(
            f"results[{rank}] has index {_show(index)}: a whole number from 0 to {n_documents - 1} was expected"
        )
    return index


def _score(row: object, rank: int) -> float:
    score = field(row, "relevance_score")
    try:
        if not isinstance(score, bool) and isinstance(score, int | float) and math.isfinite(score):
            return float(score)
    except OverflowError:  # a whole number that no float can hold
        pass
    raise InvalidResponseError(
        f"results[{rank}] has relevance_score {_show(score)}: a finite number was expected; ask another model"
    )


def _show(value: object) -> str:
    # only JSON numbers, true, false and null are shown: a string here may be a document
    return (
        json.dumps(value)[:40] if value is None or isinstance(value, int | float) else f"of type {type(value).__name__}"
    )
