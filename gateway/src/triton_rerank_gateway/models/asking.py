"""Asks a model a question: what it costs, which arguments the client gets, and what its errors are to a caller."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from triton_rerank import RerankError, RerankResult
from triton_rerank_gateway import failures
from triton_rerank_gateway.admission.queueing import Cost
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.models.models import Model
from triton_rerank_gateway.observability import tracing
from triton_rerank_gateway.question import Question

_log = logging.getLogger("triton_rerank_gateway")
_PAIR_TOKENS = 3  # special tokens of a pair
_PAIR_ROOM = 5  # tokens that a pair needs beside its query: special ones, and one of the document


def cost(question: Question, max_length: int) -> Cost:
    """Pairs, and tokens by a rule of thumb: four letters a token, one sign a token outside ASCII.

    A document that will be asked again as chunks costs what its chunks do.
    """
    most = question.extras.max_chunks or 0
    pairs = tokens = 0
    for part in question.parts:
        query = _tokens(part.query) + _PAIR_TOKENS
        for document in part.documents:
            length = query + _tokens(document)
            asked = 1 + min(most, -(-length // max_length)) if length > max_length else 1
            pairs += asked
            tokens += min(length, max_length) * asked
    return Cost(pairs, tokens)


def _tokens(text: str) -> int:
    return len(text) // 4 + 1 if text.isascii() else len(text)


async def ask(
    question: Question, model: Model, headers: Mapping[str, str], timeout_s: float
) -> tuple[RerankResult[str], ...]:
    """Ask the model.

    Raises:
        GatewayError: it did not answer, or a pair had to be cut and must not be.
    """
    if timeout_s <= 0:
        raise GatewayError("deadline", "the time for this request passed while it waited for its turn")
    results = await _results(question, model, tracing.headers_for(headers), timeout_s)
    if not question.truncate:
        for result in results:
            _check_whole(result, model)
    return results


async def _results(
    question: Question, model: Model, headers: Mapping[str, str], timeout_s: float
) -> tuple[RerankResult[str], ...]:
    options: dict[str, Any] = {"timeout_s": timeout_s, "headers": headers}
    most = model.max_length - model.prompt_tokens - _PAIR_ROOM
    if question.max_query_tokens is not None:
        options["max_query_tokens"] = max(1, min(question.max_query_tokens, most))
    if question.extras.instruction is not None:
        options["instruction"] = question.extras.instruction
    if question.max_document_tokens is not None and question.max_document_tokens <= most:
        options["max_document_tokens"] = question.max_document_tokens  # a higher bound cuts nothing
    try:
        if len(question.parts) == 1:
            part = question.parts[0]
            return (await model.client.rerank(part.query, part.documents, **options, **_chunks(question)),)
        queries, lists = zip(*((part.query, part.documents) for part in question.parts), strict=True)
        found = await model.client.rerank_many(queries, lists, **options)
    except RerankError as exc:
        raise _failed(exc, model) from exc
    for result in found:
        if isinstance(result, RerankError):
            raise _failed(result, model) from result
    return tuple(result for result in found if not isinstance(result, RerankError))


def _chunks(question: Question) -> dict[str, Any]:
    extras = question.extras
    if extras.max_chunks is None:
        return {}
    overlap = {} if extras.overlap_tokens is None else {"overlap_tokens": extras.overlap_tokens}
    return {"long_documents": "chunk", "max_chunks": extras.max_chunks, **overlap}


def _failed(error: RerankError, model: Model) -> GatewayError:
    told = failures.from_client(error)
    if failures.STATUSES[told.kind] >= 500:
        extra = {"model": model.name, "error": type(error).__name__, "detail": str(error)}
        _log.warning("the model was not reached", extra={**extra, "triton_request_id": error.request_id})
    return told


def _check_whole(result: RerankResult[str], model: Model) -> None:
    cut = sorted(ranked.index for ranked in result if ranked.truncated)
    if cut:
        raise GatewayError(
            "invalid",
            f"text {cut[0]} does not fit with the query into the {model.max_length} tokens that {model.name!r} reads, "
            "and the request forbids cutting; shorten it, or allow truncation",
        )
