"""What is read with GET: health, models, metrics. A key is wanted everywhere but for health."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from triton_rerank_gateway.admission.keys import Key
from triton_rerank_gateway.dialects import tei
from triton_rerank_gateway.gateway import Gateway
from triton_rerank_gateway.models.models import Model

VERSION = "0.1.0"
_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer or an error: JSON always, since clients take other types for a proxy's page."""
    return Response(orjson.dumps(content), status, {**_HEADERS, **(headers or {})}, "application/json")


def add_reads(app: FastAPI, gateway: Gateway) -> None:
    """Add what is read with GET and HEAD."""
    reads = _Reads(gateway)
    for paths, endpoint in (
        (("/health/live", "/v1/health/live"), reads.live),
        (("/health", "/health/ready", "/v1/health/ready", "/tei/health"), reads.ready),
        (("/v1/models", "/models", "/nim/v1/models", "/vllm/v1/models"), reads.models),
        (("/v1/models/{model:path}",), reads.model),
        (("/info", "/tei/info"), reads.info),
        (("/metrics",), reads.metrics),
    ):
        for path in paths:
            app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


class _Reads:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def live(self) -> Response:
        """The process answers."""
        return json_response({"status": "alive"})

    async def ready(self) -> Response:
        """Every model ordered its canary rightly of late."""
        models, max_age_s = self._gateway.models, self._gateway.settings.canary_max_age_s
        states = {model.name: model.state(max_age_s) for model in models.all}
        ready = models.is_ready(max_age_s)
        return json_response({"status": "ready" if ready else "not ready", "models": states}, 200 if ready else 503)

    async def models(self, request: Request) -> Response:
        """The models that this key may use."""
        key = self._key(request)
        rows = [_row(model) for model in self._gateway.models.all if key.may_use(model.name)]
        return json_response({"object": "list", "data": rows})

    async def model(self, request: Request) -> Response:
        """One model, as OpenAI's API and Xinference's clients read it."""
        model = self._gateway.find(request.path_params["model"], self._key(request))
        told = {"model_type": "rerank", "model_name": model.name, "max_tokens": model.max_length}
        return json_response({**_row(model), **told})

    async def info(self, request: Request) -> Response:
        """TEI's."""
        model = self._gateway.find(None, self._key(request))
        return json_response(tei.info(model.name, model.max_length, self._gateway.settings.max_documents, VERSION))

    async def metrics(self, request: Request) -> Response:
        """In Prometheus' text format."""
        if not self._gateway.settings.open_metrics:
            self._key(request)
        return Response(self._gateway.metrics.text(), media_type="text/plain; version=0.0.4")

    def _key(self, request: Request) -> Key:
        return self._gateway.keys.check(request.headers.get("authorization"))


def _row(model: Model) -> dict[str, Any]:
    told = {"takes_instruction": model.takes_instruction}  # ours; clients read no more than the id
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "triton-rerank", **told}
