"""Servers that come and go while calls keep coming: added ones are used, restarted ones lose nothing."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from support.chart import ROOT, tool
from support.envoy import Envoy, envoy
from support.load import Load
from support.name_server import NameServer
from support.slow_model import write_slow
from support.tritons import NAME, again, only_bert, received, start, wait_until

from triton_rerank import RerankClient, RerankError, TritonOptions
from triton_rerank_server import TritonServer

QUERY, DOCUMENTS = "how to zip a file", ["gzip shrinks files", "the cat sat on the mat", "a zip file holds others"]
AGE_S = 1.0
LOOK_UP_S = 5.0  # gRPC asks for a name once in so long, whatever happens (channel.py)
ONCE = TritonOptions(retries=0)
THREADS = 4


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_bert(tiny_repository, tmp_path_factory.mktemp("scaling") / "model_repository")


def asking(client: RerankClient) -> Load:
    return Load(lambda _: client.score(QUERY, DOCUMENTS), threads=THREADS, pause_s=0.02)


def test_a_server_that_is_added_to_dns_is_used_by_a_client_that_lives_and_no_call_fails(repository: Path) -> None:
    """Connections of the first one end at their age, and the name is looked up again; this client retries nothing."""
    with (
        start(repository, connection_age_s=AGE_S) as first,
        start(repository, address="127.0.0.2", grpc_port=first.grpc_port, connection_age_s=AGE_S) as second,
        NameServer("triton.test", ["127.0.0.1"]) as names,
        RerankClient(
            f"dns://127.0.0.1:{names.port}/triton.test:{first.grpc_port}", model=NAME, timeout_s=20.0, options=ONCE
        ) as client,
        asking(client) as load,
    ):
        load.wait_for(50)
        before = received(second.grpc_target)
        names.addresses.append("127.0.0.2")
        added_s = time.monotonic()
        assert wait_until(lambda: received(second.grpc_target) > before, AGE_S + LOOK_UP_S + 10), "it gets no call"
        found_s = time.monotonic() - added_s
        load.wait_for(50)
    print(f"first call {found_s:.1f} s after it was in DNS; {len(load.samples)} calls, {names.questions} look-ups")
    assert load.errors == []


def test_without_an_age_it_is_not(repository: Path) -> None:
    """What the age is for."""
    with (
        start(repository, connection_age_s=0) as first,
        start(repository, address="127.0.0.2", grpc_port=first.grpc_port) as second,
        NameServer("triton.test", ["127.0.0.1"]) as names,
        RerankClient(f"dns://127.0.0.1:{names.port}/triton.test:{first.grpc_port}", model=NAME) as client,
        asking(client) as load,
    ):
        load.wait_for(50)
        before = received(second.grpc_target)
        names.addresses.append("127.0.0.2")
        time.sleep(AGE_S + LOOK_UP_S + 2)
        load.wait_for(50)
        assert received(second.grpc_target) == before
    assert load.errors == []


def test_a_call_that_takes_longer_than_the_age_is_not_cut(tiny_repository: Path, tmp_path: Path) -> None:
    slow = write_slow(tiny_repository, tmp_path / "model_repository", delay_s=2 * AGE_S)
    with (
        start(slow, connection_age_s=AGE_S) as server,
        RerankClient(server.grpc_target, model=NAME, timeout_s=60.0, options=ONCE) as client,
    ):
        for _ in range(3):
            assert len(client.score(QUERY, DOCUMENTS)) == len(DOCUMENTS)


@pytest.fixture(scope="module")
def three(repository: Path) -> Iterator[list[TritonServer]]:
    servers = [start(repository) for _ in range(3)]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop(kill=True)


def restarted(
    servers: list[TritonServer], load: Load, before: Callable[[str], Any], after: Callable[[str], Any]
) -> None:
    """One after the other, each ready again before the next, with calls all the time; no further once a call failed."""
    for place, server in enumerate(servers):
        if load.errors:
            return
        load.wait_for(30, timeout_s=60)
        before(server.grpc_target)
        server.stop()
        load.wait_for(30, timeout_s=60)
        servers[place] = again(server)
        servers[place].start()
        after(server.grpc_target)
    load.wait_for(30, timeout_s=60)


def nothing(_: str) -> None:
    """Nobody is told."""


def test_a_rolling_restart_behind_the_clients_own_list_fails_no_call(three: list[TritonServer]) -> None:
    targets = ",".join(server.grpc_target for server in three)
    with RerankClient(targets, model=NAME, timeout_s=20.0) as client, asking(client) as load:
        restarted(three, load, nothing, nothing)
    print(f"{len(load.samples)} calls, {len(load.errors)} failed")
    assert load.errors == []


@pytest.fixture
def proxy(three: list[TritonServer], tmp_path: Path) -> Iterator[Envoy]:
    with envoy(tmp_path, [server.grpc_target for server in three]) as found:
        yield found


def test_a_rolling_restart_behind_envoy_fails_no_call_if_each_is_taken_out_first(
    three: list[TritonServer], proxy: Envoy
) -> None:
    targets = [server.grpc_target for server in three]

    def take_out(target: str) -> None:
        proxy.serve([each for each in targets if each != target])
        assert wait_until(lambda: proxy.active(target) is None, 30)
        assert wait_until(lambda: at_rest(target), 30)  # what it had of Envoy is answered

    def put_back(target: str) -> None:
        proxy.serve(targets)
        assert wait_until(lambda: proxy.active(target) is not None, 30)

    with RerankClient(proxy.target, model=NAME, timeout_s=20.0, options=ONCE) as client, asking(client) as load:
        restarted(three, load, take_out, put_back)
    print(f"{len(load.samples)} calls, {len(load.errors)} failed")
    assert load.errors == []


def test_a_rolling_restart_behind_envoy_without_that_fails_some(three: list[TritonServer], proxy: Envoy) -> None:
    """The control: were nothing to fail here, the test above would prove nothing."""
    with RerankClient(proxy.target, model=NAME, timeout_s=20.0, options=ONCE) as client, asking(client) as load:
        restarted(three, load, nothing, lambda target: wait_until(lambda: proxy.active(target) is not None, 30))
    print(f"{len(load.samples)} calls, {len(load.errors)} failed: {load.errors[:1]}")
    assert load.errors
    assert all(isinstance(error, RerankError) for error in load.errors)


def test_a_server_that_is_killed_behind_envoy_is_left_out_and_fails_no_call_of_a_client_that_asks_again(
    three: list[TritonServer], proxy: Envoy
) -> None:
    killed = three[0].grpc_target
    with RerankClient(proxy.target, model=NAME, timeout_s=20.0) as client, asking(client) as load:
        load.wait_for(30, timeout_s=60)
        three[0].stop(kill=True)
        assert wait_until(lambda: proxy.active(killed) is None, 30)
        load.wait_for(30, timeout_s=60)
        three[0] = again(three[0])
        three[0].start()
        assert wait_until(lambda: proxy.active(killed) is not None, 60)
        load.wait_for(30, timeout_s=60)
    print(f"{len(load.samples)} calls, {len(load.errors)} failed: {load.errors[:1]}")
    assert load.errors == []


def test_envoy_lets_nobody_unload_a_model(proxy: Envoy) -> None:
    with triton.InferenceServerClient(proxy.target) as client:
        assert client.is_server_ready() and client.is_model_ready(NAME)
        with pytest.raises(triton.InferenceServerException, match="PERMISSION_DENIED"):
            client.unload_model(NAME)
        assert client.is_model_ready(NAME)


def test_envoy_accepts_the_configuration_as_it_is() -> None:
    command = [str(tool("envoy")), "--mode", "validate", "-c", "deploy/envoy/envoy.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def at_rest(target: str) -> bool:
    """Does it get no calls?"""
    before = received(target)
    time.sleep(0.3)
    return received(target) == before
