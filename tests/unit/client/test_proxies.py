"""Proxies of the environment: loopback is never asked through one, others may be, and an error names it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosted import KEY, HostedServer
from support.proxy import ConnectProxy
from support.stand_in import StandIn, serve

from triton_rerank import (
    AsyncRerankClient,
    CohereScorer,
    RerankClient,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.triton.proxies import hosts, is_loopback, proxy_of

MODEL = "tiny-bert"
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture(scope="module")
def server(tiny_repository: Path) -> Iterator[StandIn]:
    with serve(StandIn(tiny_repository)) as running:
        yield running


@pytest.fixture
def proxy(server: StandIn) -> Iterator[ConnectProxy]:
    with ConnectProxy(server.port) as running:
        yield running


async def ask_async(target: str) -> list[float]:
    async with AsyncRerankClient(target, model=MODEL, timeout_s=10.0) as client:
        return await client.score("q", ["a", "b"])


def ask(target: str) -> list[float]:
    with RerankClient(target, model=MODEL, timeout_s=10.0) as client:
        scores = client.score("q", ["a", "b"])
    assert scores == asyncio.run(ask_async(target))
    return scores


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    "form", ["127.0.0.1:{0}", "localhost:{0}", "127.0.0.1:{0},localhost:{0}", "ipv4:127.0.0.1:{0}"]
)
def test_loopback_is_never_asked_through_a_proxy(
    variable: str, form: str, server: StandIn, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc/grpc#15942, grpc/grpc#29718, ni/grpc-labview#377: with http_proxy set, 127.0.0.1 was asked through it."""
    monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
    assert len(ask(form.format(server.port))) == 2
    assert proxy.asked == []


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("target", ["rerank.test:8001", "192.0.2.1:8001", "dns:///rerank.test:8001"])
def test_a_target_elsewhere_is_asked_through_it(
    variable: str, target: str, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://user:s3cret@127.0.0.1:{proxy.port}")
    assert len(ask(target)) == 2
    assert set(proxy.asked) == {target.removeprefix("dns:///")}
    assert set(proxy.passwords) == {"Basic dXNlcjpzM2NyZXQ="}


def test_each_address_of_a_list_is_asked_through_it_but_for_loopback(
    server: StandIn, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC itself would ask the proxy for one host that has all the addresses for its name."""
    monkeypatch.setenv("http_proxy", f"http://user:s3cret@127.0.0.1:{proxy.port}")
    assert len(ask("192.0.2.1:8001,192.0.2.2:8001")) == 2
    assert set(proxy.asked) <= {"192.0.2.1:8001", "192.0.2.2:8001"}
    assert set(proxy.passwords) == {"Basic dXNlcjpzM2NyZXQ="}
    proxy.asked.clear()
    assert len(ask(f"127.0.0.1:{server.port},192.0.2.2:8001")) == 2
    assert set(proxy.asked) <= {"192.0.2.2:8001"}


@pytest.mark.parametrize("target", ["rerank.test:8001", "192.0.2.1:8001,192.0.2.2:8001"])
@pytest.mark.parametrize("kind", ["refuses", "is not there"])
def test_a_connection_error_names_the_proxy_and_no_password(
    target: str, kind: str, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectProxy(server.port, refuses=True) as proxy:
        port = proxy.port if kind == "refuses" else 1
        monkeypatch.setenv("https_proxy", f"http://user:s3cret@127.0.0.1:{port}")
        with pytest.raises(ServerUnavailableError) as caught:
            ask(target)
    assert f"{target} through the proxy http://127.0.0.1:{port} of https_proxy: " in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "exceptions", "asked"),
    [
        ("rerank.test:8001", "", True),
        ("rerank.test:8001", "other.test, .test", False),
        ("RERANK.test:8001", "test", False),
        ("10.1.2.3:8001", "10.0.0.0/8", False),
        ("10.1.2.3:8001", "192.168.0.0/16,10.1.2.4", True),
        ("10.1.2.3:8001,rerank.test:8001", "10.0.0.0/8", True),
        ("unix:/tmp/socket", "", False),
        ("[::1]:8001", "", False),
        ("dns://10.0.0.1:53/localhost:8001", "", False),
    ],
)
def test_exceptions_are_grpcs_own(target: str, exceptions: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    assert (proxy_of(target) is not None) == asked


def test_hosts_of_targets() -> None:
    assert hosts("a:1, [::1]:2") == ["a", "::1"]
    assert hosts("dns://8.8.8.8/a.b:1") == hosts("dns:a.b:1") == ["a.b"]
    assert hosts("ipv6:[::1]:8001,[::2]:8001") == ["::1", "::2"]
    own = ["localhost", "x.localhost", "127.8.9.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"]
    assert [host for host in [*own, "10.0.0.1", "a.b", "localhost.evil"] if is_loopback(host)] == own


@pytest.mark.parametrize("kind", ["refuses", "is not there"])
def test_a_hosted_scorer_names_its_proxy_and_no_password(kind: str, server: StandIn) -> None:
    with HostedServer("cohere") as hosted, ConnectProxy(server.port, refuses=True) as proxy:
        port = proxy.port if kind == "refuses" else 1
        via = f"http://user:s3cret@127.0.0.1:{port}"
        scorer = CohereScorer(KEY, model="m", base_url=hosted.url.replace("http://", "https://"), proxy=via)
        with RerankClient(scorer=scorer) as client, pytest.raises(RerankError) as caught:
            client.rerank("q", ["a"])
    assert f"through the proxy http://127.0.0.1:{port}: " in str(caught.value)
    assert "s3cret" not in str(caught.value)
