"""Cohere, v1 and v2. Its clients take the class of an error from the status, and the text from ``message``."""

from __future__ import annotations

from triton_rerank_gateway.answered import Answered
from triton_rerank_gateway.dialects import base, v1_rerank
from triton_rerank_gateway.failures import GatewayError


def _answer(answered: Answered, version: str) -> base.Json:
    return {
        "id": answered.request_id,
        "results": [v1_rerank.result(answered, row) for row in answered.rows()],
        "meta": v1_rerank.meta(answered, version),
        **base.answer_extras(answered),
    }


def _error(failure: GatewayError) -> base.Json:
    return {"message": failure.message}


COHERE_V1 = base.Dialect(
    "cohere-v1", v1_rerank.read, lambda answered: _answer(answered, "1"), _error, v1_rerank.REQUEST, base.NO_413
)
# Version 2 has no return_documents; LiteLLM sends it all the same, and reads what comes of it.
COHERE_V2 = base.Dialect(
    "cohere-v2", v1_rerank.read, lambda answered: _answer(answered, "2"), _error, v1_rerank.REQUEST, base.NO_413
)
