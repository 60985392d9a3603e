"""Jina: ``usage`` and ``model`` beside the results; an error is a string under ``detail``."""

from __future__ import annotations

from triton_rerank_gateway.answered import Answered
from triton_rerank_gateway.dialects import base, v1_rerank
from triton_rerank_gateway.failures import GatewayError


def _answer(answered: Answered) -> base.Json:
    return {
        "model": answered.model,
        "object": "list",
        "usage": base.usage(answered),
        "results": [v1_rerank.result(answered, row) for row in answered.rows()],
        **base.answer_extras(answered),
    }


def _error(failure: GatewayError) -> base.Json:
    return {"detail": failure.message}


JINA = base.Dialect("jina", v1_rerank.read, _answer, _error, v1_rerank.REQUEST)
