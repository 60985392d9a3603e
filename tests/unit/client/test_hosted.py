"""Hosted scorers against a real HTTP server on loopback: what is sent, and what comes of a right answer."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.hosted import KEY, KEYS, PATHS, Fault, HostedServer, relevance
from support.hosted_calls import (
    DOCUMENTS,
    QUERY,
    SCORERS,
    SLACK_S,
    DialectName,
    Form,
    all_dialects,
    both_forms,
    failure,
    run,
    score,
)
from support.load import BusyClock

from triton_rerank import AsyncRerankClient, RerankClient, RerankResult
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, PairRequest
from triton_rerank.errors import ConfigurationError, InvalidRequestError
from triton_rerank.hosted import CohereScorer


@pytest.fixture
def server() -> Iterator[HostedServer]:
    with HostedServer("cohere") as running:
        yield running


@pytest.fixture
def scorer(server: HostedServer) -> Iterator[CohereScorer]:
    made = CohereScorer(KEY, model="rerank-v3.5", base_url=server.url)
    yield made
    made.close()


@both_forms
@all_dialects
def test_scores_come_in_the_order_of_the_documents(form: Form, dialect: DialectName) -> None:
    with HostedServer(dialect) as server:
        scorer = SCORERS[dialect](KEY, model="m-1", base_url=server.url)
        scored = score(form, scorer)
        scorer.close()
    sent = [document or (" " if dialect == "voyage" else "") for document in DOCUMENTS]
    assert scored.scores is not None
    assert scored.scores.dtype == np.float64
    assert scored.scores.tolist() == pytest.approx([relevance(QUERY, document) for document in sent], abs=1e-12)
    assert (scored.model, scored.served_by, scored.requests) == ("m-1", f"{dialect}/m-1", 1)
    assert scored.logits is None
    assert scored.truncated.tolist() == [False] * 4
    assert scored.token_count == sum(len(document.split()) for document in DOCUMENTS)


@all_dialects
def test_both_clients_rank_by_a_hosted_scorer(dialect: DialectName) -> None:
    async def ask(client: AsyncRerankClient) -> RerankResult[str]:
        async with client:
            return await client.rerank(QUERY, DOCUMENTS, top_k=3, min_score=0.1)

    with HostedServer(dialect) as server:
        with RerankClient(scorer=SCORERS[dialect](KEY, model="m", base_url=server.url)) as client:
            blocking = client.rerank(QUERY, DOCUMENTS, top_k=3, min_score=0.1)
        awaited = asyncio.run(ask(AsyncRerankClient(scorer=SCORERS[dialect](KEY, model="m", base_url=server.url))))
    assert [ranked.index for ranked in blocking] == [1, 3]
    assert blocking.documents == awaited.documents
    assert blocking[0].score == pytest.approx(relevance(QUERY, DOCUMENTS[1]))
    assert blocking[0].logit is None
    assert (blocking.served_by, blocking.model, blocking.degraded) == (f"{dialect}/m", "m", False)


GOLDEN: dict[str, dict[str, Any]] = {
    "cohere": {"model": "m", "query": QUERY, "documents": ["a", "é"], "top_n": 2, "max_tokens_per_doc": 64},
    "jina": {"model": "m", "query": QUERY, "documents": ["a", "é"], "top_n": 2, "return_documents": False},
    "voyage": {
        "model": "m",
        "query": QUERY,
        "documents": ["a", "é"],
        "top_k": 2,
        "return_documents": False,
        "truncation": True,
    },
}


@all_dialects
def test_a_request_has_the_path_the_key_and_the_json_that_the_provider_documents(dialect: DialectName) -> None:
    with HostedServer(dialect) as server:
        scorer = SCORERS[dialect](KEY, model="m", base_url=f"{server.url}/")
        score("sync", scorer, ("a", "é"), max_length=64)
        scorer.close()
    (received,) = server.received
    assert (received.method, received.path) == ("POST", PATHS[dialect])
    assert received.headers["Authorization"] == f"Bearer {KEY}"
    assert received.headers["Content-Type"] == "application/json"
    assert received.body == GOLDEN[dialect]
    assert set(received.body) <= set(KEYS[dialect])


@pytest.mark.parametrize(
    ("dialect", "url", "variable"),
    [
        ("cohere", "https://api.cohere.com", "COHERE_API_KEY"),
        ("jina", "https://api.jina.ai", "JINA_API_KEY"),
        ("voyage", "https://api.voyageai.com", "VOYAGE_API_KEY"),
    ],
)
def test_address_and_key_have_the_providers_defaults(
    dialect: str, url: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigurationError, match=variable):
        SCORERS[dialect](model="m")
    monkeypatch.setenv(variable, f"{KEY}\n")
    assert repr(SCORERS[dialect](model="m")) == f"{SCORERS[dialect].__name__}(model='m', base_url='{url}')"


def test_the_key_of_the_environment_is_sent(server: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHERE_API_KEY", f" {KEY}\n")
    scorer = CohereScorer(model="m", base_url=server.url)
    assert score("sync", scorer).requests == 1
    scorer.close()


def test_a_calls_headers_are_not_sent_to_a_provider(server: HostedServer, scorer: CohereScorer) -> None:
    call = Call(Deadline(5.0), SyncRuntime(), headers={"triton-secret": "s3cret"})
    run_sync(scorer.score(PairRequest(b"q", (b"d",)), call))
    assert "s3cret" not in str(server.received)


def test_proxies_of_the_environment_do_not_get_the_key(
    server: HostedServer, scorer: CohereScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostedServer("cohere") as proxy:
        for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        score("sync", scorer)
        assert (len(server.received), len(proxy.received)) == (1, 0)


def test_a_proxy_that_is_named_is_used(server: HostedServer) -> None:
    with HostedServer("cohere") as proxy:
        scorer = CohereScorer(KEY, model="m", base_url=server.url, proxy=proxy.url)
        failure("sync", scorer)
        scorer.close()
        assert (len(server.received), proxy.received[0].path) == (0, f"{server.url}/v2/rerank")


@both_forms
def test_a_list_over_the_providers_bound_is_split_and_put_together(form: Form, server: HostedServer) -> None:
    documents = tuple(f"document {index} {'red ' if index % 3 else ''}{'x' * (index % 7)}" for index in range(2500))
    scorer = CohereScorer(KEY, model="m", base_url=server.url)
    scored = score(form, scorer, documents, timeout_s=20)
    scorer.close()
    assert sorted(len(received.body["documents"]) for received in server.received) == [500, 1000, 1000]
    assert scored.requests == 3
    assert scored.scores is not None
    assert scored.scores.tolist() == pytest.approx([relevance(QUERY, document) for document in documents], abs=1e-12)
    assert scored.token_count == sum(len(document.split()) for document in documents)


@both_forms
def test_a_part_that_fails_fails_the_call_and_no_further_part_is_paid_for(form: Form, server: HostedServer) -> None:
    server.always = Fault(status=400, body=b'{"message": "no"}')
    scorer = CohereScorer(KEY, model="m", base_url=server.url)
    with pytest.raises(InvalidRequestError):
        score(form, scorer, tuple(str(index) for index in range(20_000)), timeout_s=20)
    scorer.close()
    assert len(server.received) <= 8  # 4 at a time, and those that were begun before the first came back


# Readiness and construction


@both_forms
@pytest.mark.parametrize("status", [200, 404, 401, 500])
def test_any_http_answer_is_ready_and_the_probe_has_no_key(
    form: Form, status: int, server: HostedServer, scorer: CohereScorer
) -> None:
    server.always = Fault(status=status)
    assert run(form, scorer.is_ready) is True
    (received,) = server.received
    assert (received.method, received.body) == ("HEAD", None)
    assert "Authorization" not in received.headers


@both_forms
def test_a_server_that_hangs_is_not_ready(
    form: Form, server: HostedServer, scorer: CohereScorer, busy: BusyClock
) -> None:
    server.always = Fault("hang")
    begin = time.monotonic()
    assert run(form, scorer.is_ready, timeout_s=0.3) is False
    assert busy.own_s(begin) < 0.3 + 2 * SLACK_S  # the first request also makes the client


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"api_key": ""}, "no API key for Cohere: give api_key or set COHERE_API_KEY"),
        ({"api_key": "   "}, "no API key"),
        ({"api_key": "two words"}, "printable ASCII"),
        ({"api_key": "line\nline"}, "printable ASCII"),
        ({"api_key": "schlüssel"}, "printable ASCII"),
        ({"model": ""}, "model is empty"),
        ({"retries": -1}, "retries is -1"),
        ({"base_url": "api.cohere.com"}, "scheme ''"),
        ({"base_url": "ftp://api.cohere.com"}, "scheme 'ftp'"),
        ({"base_url": "https://"}, "and a host"),
        ({"base_url": "https://host:port"}, "base_url is no address"),
        ({"base_url": "https://user:pass@host"}, "no query, fragment or user name"),
        ({"base_url": "https://host?x=1"}, "no query"),
        ({"proxy": "socks5://host:1"}, "proxy has scheme 'socks5'"),
        ({"proxy": "http://user:pa:ss@host:x"}, "proxy is no address"),
    ],
)
def test_what_cannot_work_is_refused_when_the_scorer_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        CohereScorer(**{"api_key": KEY, "model": "m", **arguments})
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for secret in ("two words", "schlüssel", "pass", "pa:ss"):
        assert secret not in str(caught.value)


def test_without_httpx_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'triton-rerank\[hosted\]'"):
        CohereScorer(KEY, model="m")


def test_importing_the_scorers_does_not_import_httpx() -> None:
    import subprocess

    code = "import sys, triton_rerank.hosted; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_body_is_utf8_json_without_escapes(server: HostedServer, scorer: CohereScorer) -> None:
    score("sync", scorer, ("crème 🍎 \u2028 \x00",))
    received = server.received[0]
    assert received.body["documents"] == ["crème 🍎 \u2028 \x00"]
    expected = json.dumps(received.body, ensure_ascii=False, separators=(",", ":")).encode()
    assert int(received.headers["Content-Length"]) == len(expected)
