"""Requests that nobody thought of: every answer is JSON, none is a fault of ours, none shows a traceback."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from support.gateways import DOCUMENTS, QUERY, Running, fake, running

from triton_rerank_gateway import Settings
from triton_rerank_gateway.dialects.routes import ROUTES

BODIES = int(os.environ.get("GATEWAY_FUZZ", "300"))  # 10,000 were run by hand
EXAMPLES = int(os.environ.get("GATEWAY_SCHEMA_EXAMPLES", "3"))
INTENDED = {200, 400, 404, 408, 413, 415, 422, 429, 504}

SEEDS: list[dict[str, Any]] = [
    {"query": QUERY, "documents": DOCUMENTS, "top_n": 2, "return_documents": True, "model": "rerank-v3.5"},
    {"query": QUERY, "documents": [{"text": "a", "id": 1}], "rank_fields": ["text"], "max_tokens_per_doc": 5},
    {"query": QUERY, "documents": DOCUMENTS, "top_k": 1, "truncation": True},
    {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True, "truncation_direction": "Right"},
    {"query": QUERY, "documents": DOCUMENTS, "raw_scores": False, "timeout_ms": 5000, "min_score": 0.5},
    {"query": {"text": QUERY}, "passages": [{"text": "a"}], "truncate": "END"},
    {"text_1": QUERY, "text_2": DOCUMENTS, "use_activation": False},
    {"inputs": [[QUERY, "a"], ["b", "c"]], "raw_scores": True},
    {"query": QUERY, "documents": DOCUMENTS, "return_details": True, "priority": 1, "max_tokens_per_query": 3},
]
ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, 2**63, 2**64, "", " ", "true", "\x00", "é" * 50, "\U0001f600", [], {}, [[]],
    [None], [{}], {"text": None}, {"text": "a"}, ["a", 5], "x" * 5000, ["a"] * 300, [["a", "b"]], [0.5],
]  # fmt: skip


@pytest.fixture(scope="module")
def gateway() -> Iterator[Running]:
    with running(Settings(port=0, max_documents=250, max_body_bytes=100_000, log_level="error"), fake()) as found:
        yield found


def mutated(rng: random.Random) -> bytes:
    """A seed with a few fields changed, added, doubled or taken away, and at times broken bytes."""
    body = dict(rng.choice(SEEDS))
    names = sorted({name for seed in SEEDS for name in seed})
    for _ in range(rng.randint(0, 4)):
        name = rng.choice(names)
        action = rng.random()
        if action < 0.25:
            body.pop(name, None)
        elif action < 0.4 and isinstance(body.get(name), list):
            body[name] = [*body[name], rng.choice(ODD)]
        else:
            body[name] = rng.choice(ODD)
    encoded = json.dumps(body).encode()
    if rng.random() < 0.1:
        place = rng.randrange(len(encoded))
        encoded = encoded[:place] + bytes([rng.randrange(256)]) + encoded[place + 1 :]
    return encoded[: rng.randrange(len(encoded))] if rng.random() < 0.03 else encoded


def test_mutated_bodies_are_answered_or_refused_and_never_a_fault(gateway: Running) -> None:
    rng = random.Random(20261129)
    paths = [route.path.replace("{model:path}", "fake-model") for route in ROUTES]
    statuses: Counter[int] = Counter()
    for _ in range(BODIES):
        path, body = rng.choice(paths), mutated(rng)
        found = gateway.http.post(path, content=body, headers={"content-type": "application/json"})
        statuses[found.status_code] += 1
        assert found.status_code in INTENDED, (path, body, found.text)
        assert found.headers["content-type"] == "application/json"
        assert isinstance(found.json(), dict | list)
        assert "Traceback" not in found.text and 'File "' not in found.text
    print(f"{BODIES} bodies:", dict(statuses))
    assert statuses[200] > BODIES / 10 and statuses[400] > BODIES / 20
    assert gateway.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}).status_code == 200


def test_requests_made_from_the_openapi_document_are_answered_as_it_says(gateway: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis.specs.openapi import checks

    wanted = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    operations = {each.ok().path: each.ok() for each in schema.get_all_operations()}
    assert set(operations) == {route.path.replace(":path", "") for route in ROUTES}
    one_each = {
        tuple(dialect.name for dialect in route.dialects): operations[route.path]
        for route in reversed(ROUTES)
        if ":" not in route.path
    }

    def holds(case: Any) -> None:
        found = case.call(timeout=60)
        assert found.status_code < 500
        case.validate_response(found, checks=wanted)

    patient = settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    for operation in one_each.values():
        patient(given(case=operation.as_strategy())(holds))()
