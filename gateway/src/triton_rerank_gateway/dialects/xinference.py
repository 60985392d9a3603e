"""Xinference: Cohere's ``meta`` with tokens, ``detail`` in errors; some of its clients send booleans as strings."""

from __future__ import annotations

from triton_rerank_gateway.answered import Answered
from triton_rerank_gateway.dialects import base, common
from triton_rerank_gateway.failures import GatewayError


def _answer(answered: Answered) -> base.Json:
    return {
        "id": answered.request_id,
        "results": [common.result(answered, row) for row in answered.rows()],
        "meta": {**common.meta(answered, "1"), "warnings": None},
        **base.answer_extras(answered),
    }


def _error(failure: GatewayError) -> base.Json:
    return {"detail": failure.message}


XINFERENCE = base.Dialect("xinference", common.read, _answer, _error, common.REQUEST, base.NO_413)
