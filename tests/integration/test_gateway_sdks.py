"""Real SDKs, unchanged, through a gateway to a real Triton: order, top_n, documents, and each kind of error."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cohere
import cohere.errors
import pytest
import voyageai
import voyageai.error
from support.gateways import Running, fake, running, wait_for

from triton_rerank import RerankClient
from triton_rerank_gateway import Settings
from triton_rerank_gateway.keys import read_key
from triton_rerank_server import TritonServer

DEMO = "minilm-l6-demo"
KEY = "sdk-key"
QUERY = "how do I make a file smaller?"
DOCUMENTS = [
    "A file cabinet with four drawers holds about a hundred kilograms of paper.",
    "gzip makes archives take less room on disk.",
    "Compression stockings press the legs.",
]


@pytest.fixture(scope="module")
def gateway(server: TritonServer) -> Iterator[Running]:
    settings = Settings(port=0, target=server.grpc_target, model=(DEMO,), timeout_s=60.0, max_timeout_s=60.0)
    keys = [read_key({"name": "sdk", "hash": hashlib.sha256(KEY.encode()).hexdigest()})]
    with running(settings, keys=keys) as found:
        wait_for(lambda: found.get("/health/ready").status_code == 200, 60)
        yield found


@pytest.fixture(scope="module")
def wanted(server: TritonServer) -> list[int]:
    """The order of the client itself."""
    with RerankClient(server.grpc_target, model=DEMO, timeout_s=60.0) as client:
        order = [ranked.index for ranked in client.rerank(QUERY, DOCUMENTS)]
    assert order[0] == 1
    return order


Call = Callable[..., Any]


def cohere_call(version: int, *, awaited: bool, key: str = KEY) -> Callable[[str], Call]:
    """A call of one of Cohere's four clients, blocking."""
    kind = {
        (1, False): cohere.Client,
        (1, True): cohere.AsyncClient,
        (2, False): cohere.ClientV2,
        (2, True): cohere.AsyncClientV2,
    }[version, awaited]

    def at(url: str) -> Call:
        def call(**arguments: Any) -> Any:
            client: Any = kind(key, base_url=url)
            arguments = {"model": "rerank-v3.5", "query": QUERY, "documents": DOCUMENTS, **arguments}
            found = client.rerank(**arguments)
            return asyncio.run(found) if asyncio.iscoroutine(found) else found

        return call

    return at


COHERE = [(version, awaited) for version in (1, 2) for awaited in (False, True)]


@pytest.mark.parametrize(("version", "awaited"), COHERE)
def test_cohere_gets_the_order_top_n_and_documents(
    gateway: Running, wanted: list[int], version: int, awaited: bool
) -> None:
    call = cohere_call(version, awaited=awaited)(gateway.url)
    found = call()
    assert [row.index for row in found.results] == wanted
    assert all(0 <= row.relevance_score <= 1 for row in found.results)
    assert found.meta.api_version.version == str(version) and found.id
    assert [row.index for row in call(top_n=1).results] == wanted[:1]
    assert len(call(top_n=50).results) == 3
    if version == 1:
        told = call(return_documents=True, documents=[{"text": text, "page": 3} for text in DOCUMENTS], top_n=1)
        assert (told.results[0].document.text, told.results[0].document.page) == (DOCUMENTS[wanted[0]], 3)


COHERE_ERRORS = [
    ({"documents": []}, KEY, cohere.errors.BadRequestError, "documents is empty"),
    ({"documents": ["a"] * 5000}, KEY, cohere.errors.BadRequestError, "5000 documents: the bound is 2048"),
    ({"query": " "}, KEY, cohere.errors.BadRequestError, "query is blank"),
    ({}, "wrong", cohere.errors.UnauthorizedError, "the key is not known here"),
    ({"model": "nobody"}, KEY, cohere.errors.NotFoundError, "'nobody' is not served here"),
]


@pytest.mark.parametrize(("version", "awaited"), COHERE)
@pytest.mark.parametrize(("arguments", "key", "error", "said"), COHERE_ERRORS)
def test_cohere_raises_its_own_class_with_our_words(
    gateway: Running,
    version: int,
    awaited: bool,
    arguments: dict[str, Any],
    key: str,
    error: type[cohere.core.api_error.ApiError],
    said: str,
) -> None:
    with pytest.raises(error) as raised:
        cohere_call(version, awaited=awaited, key=key)(gateway.url)(**arguments)
    assert said in raised.value.body["message"]


def voyage_call(*, awaited: bool, key: str = KEY, **options: Any) -> Callable[[str], Call]:
    kind: Any = voyageai.AsyncClient if awaited else voyageai.Client  # type: ignore[attr-defined]

    def at(url: str) -> Call:
        def call(**arguments: Any) -> Any:
            client = kind(api_key=key, base_url=f"{url}/v1", **options)
            arguments = {"model": "rerank-2.5", "query": QUERY, "documents": DOCUMENTS, **arguments}
            found = client.rerank(**arguments)
            return asyncio.run(found) if asyncio.iscoroutine(found) else found

        return call

    return at


@pytest.mark.parametrize("awaited", [False, True])
def test_voyage_gets_the_order_top_k_and_documents(gateway: Running, wanted: list[int], awaited: bool) -> None:
    call = voyage_call(awaited=awaited)(gateway.url)
    found = call()
    assert [(row.index, row.document) for row in found.results] == [(index, DOCUMENTS[index]) for index in wanted]
    assert found.total_tokens > 0
    assert [row.index for row in call(top_k=2).results] == wanted[:2]
    assert len(call(top_k=50).results) == 3


VOYAGE_ERRORS = [
    ({"documents": []}, KEY, "InvalidRequestError", "documents is empty"),
    ({}, "wrong", "AuthenticationError", "the key is not known here"),
    ({"model": "nobody"}, KEY, "InvalidRequestError", "'nobody' is not served here"),
    ({"documents": ["word " * 5000], "truncation": False}, KEY, "InvalidRequestError", "does not fit with the query"),
]


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(("arguments", "key", "error", "said"), VOYAGE_ERRORS)
def test_voyage_raises_its_own_class_with_our_words(
    gateway: Running, awaited: bool, arguments: dict[str, Any], key: str, error: str, said: str
) -> None:
    with pytest.raises(getattr(voyageai.error, error)) as raised:
        voyage_call(awaited=awaited, key=key)(gateway.url)(**arguments)
    assert said in str(raised.value)


@pytest.fixture
def busy() -> Iterator[Running]:
    """A gateway that one request fills for two seconds, and that has no waiting room for another."""
    settings = Settings(port=0, pairs_in_flight=3, pairs_waiting=3, max_wait_s=0.05, canary_interval_s=3600.0)
    with running(settings, fake(delay_s=2.0)) as found, ThreadPoolExecutor(1) as pool:
        wait_for(lambda: found.get("/health/ready").status_code == 200)
        first = pool.submit(found.post, "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
        wait_for(lambda: found.gateway.admission.queue.in_flight.pairs == 3)
        yield found
        assert first.result().status_code == 200


def refusals(gateway: Running) -> float:
    found = [line for line in gateway.get("/metrics").text.splitlines() if 'events_total{event="refused"' in line]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


@pytest.mark.parametrize("awaited", [False, True])
def test_cohere_waits_as_its_retry_after_says_and_is_answered(busy: Running, awaited: bool) -> None:
    began_s = time.monotonic()
    assert len(cohere_call(2, awaited=awaited)(busy.url)().results) == 3
    assert refusals(busy) >= 1
    assert time.monotonic() - began_s >= 1.0


def test_voyage_raises_its_class_for_overload_when_it_may_not_try_again(busy: Running) -> None:
    with pytest.raises(voyageai.error.RateLimitError, match="come again in"):
        voyage_call(awaited=False, max_retries=1)(busy.url)()
