"""Xinference: Cohere's ``meta`` with tokens, ``detail`` in errors; some of its clients send booleans as strings."""

from __future__ import annotations

from triton_rerank_gateway.answered import Answered
from triton_rerank_gateway.dialects import base, v1_rerank
from triton_rerank_gateway.failures import GatewayError


def _answer(answered: Answered) -> base.Json:
    return {
        "id": answered.request_id,
        "results": [v1_rerank.result(answered, row) for row in answered.rows()],
        "meta": {**v1_rerank.meta(answered, "1"), "warnings": None},
        **base.answer_extras(answered),
    }


def _error(failure: GatewayError) -> base.Json:
    return {"detail": failure.message}


XINFERENCE = base.Dialect("xinference", v1_rerank.read, _answer, _error, v1_rerank.REQUEST, base.NO_413)
