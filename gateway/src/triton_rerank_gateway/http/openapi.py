"""What the OpenAPI document says of a dialect's path."""

from __future__ import annotations

import re
from typing import Any

from triton_rerank_gateway.dialects.routes import Route

_REFUSALS = {
    "400": "the request is wrong, or the model is no reranker",
    "401": "no key, or an unknown one",
    "403": "the key may not use this model",
    "404": "no such model",
    "408": "the body came too slowly",
    "413": "too large",
    "415": "no JSON",
    "422": "the request is wrong, where the dialect says it so",
    "424": "the model failed or is no reranker, where the dialect says it so",
    "429": "too much is waiting; Retry-After says when to come again",
    "500": "the gateway is not configured for the model behind it",
    "502": "the model failed",
    "503": "no reranker can be reached",
    "504": "the time passed",
}


def described(route: Route) -> dict[str, Any]:
    """Arguments for FastAPI's ``add_api_route``."""
    schemas = [dialect.request for dialect in route.dialects]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    answers = {"200": {"description": "ranked", "content": {"application/json": {"schema": {}}}}}
    refusals = {
        status: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
        for status, text in _REFUSALS.items()
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)", route.path)
    ]
    return {
        "operation_id": re.sub(r"\W+", "_", route.path).strip("_"),
        "summary": ", ".join(dialect.name for dialect in route.dialects),
        "response_model": None,
        "openapi_extra": {
            "parameters": parameters,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {**answers, **refusals},
        },
    }
