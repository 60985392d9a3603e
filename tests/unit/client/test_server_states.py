"""What the metrics say of the servers behind a client: known, ready, attempts."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from support.stand_in import StandIn, serve
from support.tritons import wait_until

from triton_rerank import (
    AsyncRerankClient,
    MeteredScorer,
    RerankClient,
    RerankError,
    ServersCollector,
    TritonOptions,
    TritonScorer,
)

MODEL = "tiny-bert"


@pytest.fixture
def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(ServersCollector())
    return found


@pytest.fixture
def servers(tiny_repository: Path) -> Iterator[list[StandIn]]:
    """Three; the first refuses the first two inferences."""
    with ExitStack() as stack:
        yield [stack.enter_context(serve(StandIn(tiny_repository, refusals=n))) for n in (2, 0, 0)]


def told(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"triton_rerank_client_{name}", labels)


def test_a_request_that_was_sent_again_is_counted_each_time(
    registry: CollectorRegistry, servers: list[StandIn]
) -> None:
    target = f"127.0.0.1:{servers[0].port}"
    with RerankClient(target, model=MODEL, options=TritonOptions(retries=2)) as client:
        assert client.score("q", ["a"])
        assert told(registry, "attempts_total", target=target, outcome="failed") == 2
        sent = told(registry, "attempts_total", target=target, outcome="ok")
        client.score("q", ["a"])
        assert told(registry, "attempts_total", target=target, outcome="ok") == (sent or 0) + 1
    assert wait_until(lambda: told(registry, "servers", target=target) is None, 5), "it is closed"
    assert told(registry, "attempts_total", target=target, outcome="failed") == 2


def test_a_server_that_is_gone_is_known_and_not_ready(registry: CollectorRegistry, servers: list[StandIn]) -> None:
    target = ",".join(f"127.0.0.1:{server.port}" for server in servers)

    def ready() -> float | None:
        client.score("q", ["a"])
        return told(registry, "servers_ready", target=target)

    with RerankClient(target, model=MODEL) as client:
        assert wait_until(lambda: ready() == 3, 10)
        servers[1].stop()
        assert wait_until(lambda: ready() == 2, 10)
        assert told(registry, "servers", target=target) == 3


def test_the_async_client_and_two_models_of_one_server(registry: CollectorRegistry, servers: list[StandIn]) -> None:
    target = f"127.0.0.1:{servers[1].port}"

    async def ask() -> tuple[float | None, float | None]:
        async with AsyncRerankClient(target, model=MODEL) as one, AsyncRerankClient(target, model=MODEL) as two:
            for client in (one, two):
                await client.score("q", ["a"])
            return told(registry, "servers_ready", target=target), told(
                registry, "attempts_total", target=target, outcome="ok"
            )

    ready, attempts = asyncio.run(ask())
    assert ready == 1
    assert attempts == 2 + 2 * 2, "two inferences, and two configs for each client"


def test_metered_scorers_of_one_registry_bring_it_once(servers: list[StandIn]) -> None:
    registry = CollectorRegistry()
    for server in servers[1:]:
        target = f"127.0.0.1:{server.port}"
        with RerankClient(scorer=MeteredScorer(TritonScorer(target, MODEL), registry=registry)) as client:
            client.score("q", ["a"])
            assert told(registry, "servers_ready", target=target) == 1


def test_a_server_that_nobody_reaches(registry: CollectorRegistry) -> None:
    target = "127.0.0.1:9"
    with RerankClient(target, model=MODEL, timeout_s=1.0) as client:
        with pytest.raises(RerankError):
            client.score("q", ["a"])
        assert told(registry, "servers", target=target) == 1
        assert told(registry, "servers_ready", target=target) == 0


def test_a_fork_counts_anew_though_a_read_was_under_way(servers: list[StandIn]) -> None:
    collector = ServersCollector()
    collector._lock.acquire()  # as a thread of the parent may hold it when the child is made
    try:
        with RerankClient(f"127.0.0.1:{servers[1].port}", model=MODEL) as client:
            client.score("q", ["a"])
            read, write = os.pipe()
            child = os.fork()
            if child == 0:  # nothing but this, and no way back into pytest
                os.write(write, str([family.samples for family in collector.collect()]).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as told:
                assert select.select([told], [], [], 20)[0], "the child hangs"
                assert told.read() == "[[], [], []]"
            os.waitpid(child, 0)
    finally:
        collector._lock.release()


def test_a_grpc_that_does_not_tell_leaves_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("grpc._cython.cygrpc.channelz_get_top_channels")
    assert list(ServersCollector().collect()) == []
