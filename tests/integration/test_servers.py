"""How servers are found and talked to: lists, DNS, TLS, headers, compression, sizes, threads, forks, event loops."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from support.load import Load, at_once
from support.name_server import NameServer
from support.stand_in import DeadSocket, Door, StandIn, serve
from support.tls import Authority, TlsTriton
from support.tritons import NAME, only_bert, received, start, wait_until

from triton_rerank import (
    AsyncRerankClient,
    ConfigurationError,
    FallbackScorer,
    RerankClient,
    RerankError,
    ServerUnavailableError,
    Tls,
    TritonOptions,
    TritonScorer,
)
from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_server import TritonServer

QUERY, DOCUMENTS = "how to zip a file", ["gzip shrinks files", "the cat sat on the mat", "a zip file holds others"]


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_bert(tiny_repository, tmp_path_factory.mktemp("servers") / "model_repository")


@pytest.fixture(scope="module")
def pair(repository: Path) -> Iterator[list[TritonServer]]:
    """Two servers on one port of two addresses."""
    with start(repository) as first, start(repository, address="127.0.0.2", grpc_port=first.grpc_port) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def scores(pair: list[TritonServer]) -> list[float]:
    with RerankClient(pair[0].grpc_target, model=NAME) as client:
        return client.score(QUERY, DOCUMENTS)


def shares(target: str, servers: list[TritonServer], expected: list[float], calls: int = 40) -> list[int]:
    """How many of the calls each server got."""
    before = [received(server.grpc_target) for server in servers]
    with RerankClient(target, model=NAME, timeout_s=20.0) as client:
        client.model_info()
        assert wait_until(lambda: both_answer(client, servers, before), 10)
        before = [received(server.grpc_target) for server in servers]
        for _ in range(calls):
            assert client.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-6)
    return [received(server.grpc_target) - count for server, count in zip(servers, before, strict=True)]


def both_answer(client: RerankClient, servers: list[TritonServer], before: list[int]) -> bool:
    """Connections are made one after the other."""
    client.score(QUERY, DOCUMENTS)
    return all(received(server.grpc_target) > count for server, count in zip(servers, before, strict=True))


def test_a_list_of_addresses_is_used_evenly(pair: list[TritonServer], scores: list[float]) -> None:
    first, second = shares(",".join(server.grpc_target for server in pair), pair, scores)
    assert first + second == 40
    assert abs(first - second) <= 4


def test_a_list_may_hold_names(pair: list[TritonServer], scores: list[float]) -> None:
    first, second = shares(f"localhost:{pair[0].grpc_port}, 127.0.0.2:{pair[1].grpc_port}", pair, scores)
    assert min(first, second) >= 15


def test_a_dns_name_with_two_addresses_is_used_evenly(pair: list[TritonServer], scores: list[float]) -> None:
    with NameServer("triton.test", ["127.0.0.1", "127.0.0.2"]) as names:
        target = f"dns://127.0.0.1:{names.port}/triton.test:{pair[0].grpc_port}"
        first, second = shares(target, pair, scores)
        assert names.questions >= 1
    assert abs(first - second) <= 4


def test_a_dns_name_that_has_no_address_is_unavailable() -> None:
    with (
        NameServer("triton.test", []) as names,
        RerankClient(f"dns://127.0.0.1:{names.port}/triton.test:8001", model=NAME, timeout_s=5.0) as client,
        pytest.raises(ServerUnavailableError),
    ):
        client.rerank(QUERY, DOCUMENTS)


def test_a_name_of_a_list_that_is_unknown_is_unavailable_and_named() -> None:
    with RerankClient("127.0.0.1:8001,no-such-host.invalid:8001", model=NAME) as client:
        with pytest.raises(ServerUnavailableError, match="no-such-host.invalid"):
            client.rerank(QUERY, DOCUMENTS)
        assert not client.is_ready()


def test_servers_that_are_not_there_are_passed_over(pair: list[TritonServer], scores: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        nobody = holder.getsockname()[1]
    with DeadSocket() as dead:
        target = f"127.0.0.1:{nobody},127.0.0.1:{dead.port},{pair[0].grpc_target}"
        with RerankClient(target, model=NAME, timeout_s=20.0) as client:
            for _ in range(30):
                assert client.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=1e-6)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.write(tmp_path_factory.mktemp("tls") / "right", "localhost", "triton.test")


@pytest.fixture(scope="module")
def tls_server(repository: Path, authority: Authority) -> Iterator[TritonServer]:
    with TlsTriton(repository, authority, mutual=False) as server:
        yield server


@pytest.fixture(scope="module")
def mutual_server(repository: Path, authority: Authority) -> Iterator[TritonServer]:
    with TlsTriton(repository, authority, mutual=True) as server:
        yield server


def secure(target: str, tls: Tls | None) -> RerankClient:
    return RerankClient(target, model=NAME, timeout_s=5.0, options=TritonOptions(tls=tls))


def test_tls(tls_server: TritonServer, authority: Authority, scores: list[float]) -> None:
    port = tls_server.grpc_port
    for target, server_name in (
        (f"localhost:{port}", None),
        (f"127.0.0.1:{port}", "triton.test"),
        (f"localhost:{port},localhost:{port}", None),
    ):
        with secure(target, authority.tls(mutual=False, server_name=server_name)) as client:
            assert client.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=1e-6)


def test_tls_of_tasks(tls_server: TritonServer, authority: Authority, scores: list[float]) -> None:
    async def run() -> None:
        options = TritonOptions(tls=authority.tls(mutual=False))
        async with AsyncRerankClient(f"localhost:{tls_server.grpc_port}", model=NAME, options=options) as client:
            assert await client.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=1e-6)

    asyncio.run(run())


def test_mutual_tls(mutual_server: TritonServer, authority: Authority, scores: list[float]) -> None:
    with secure(f"localhost:{mutual_server.grpc_port}", authority.tls()) as client:
        assert client.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=1e-6)


def test_certificates_that_do_not_fit_are_typed_errors(
    tls_server: TritonServer,
    mutual_server: TritonServer,
    authority: Authority,
    pair: list[TritonServer],
    tmp_path: Path,
) -> None:
    other = Authority.write(tmp_path / "other", "localhost")
    plain, secured, mutual = (server.grpc_target for server in (pair[0], tls_server, mutual_server))
    named = authority.tls(mutual=False, server_name="localhost")
    stranger = Tls(authority.root, other.client_key, other.client_chain, "localhost")
    cases: dict[str, tuple[str, Tls | None, type[RerankError]]] = {
        "another authority": (secured, other.tls(mutual=False, server_name="localhost"), ConfigurationError),
        "a name that the certificate has not": (secured, authority.tls(mutual=False), ConfigurationError),
        "TLS to a plain server": (plain, named, ConfigurationError),
        "plain to a TLS server": (secured, None, ServerUnavailableError),
        "no certificate of the client's": (mutual, named, ServerUnavailableError),
        "the client's is of another authority": (mutual, stranger, ServerUnavailableError),
    }
    for name, (target, tls, expected) in cases.items():
        began_s = time.monotonic()
        with secure(target, tls) as client, pytest.raises(RerankError) as error:
            client.rerank(QUERY, DOCUMENTS)
        took_s = time.monotonic() - began_s
        print(f"{name}: {type(error.value).__name__} after {took_s:.2f} s: {error.value}")
        assert type(error.value) is expected, name
        assert took_s < 5.1
    assert "PRIVATE" not in str(error.value)


@pytest.mark.parametrize("mutual", [False, True])
def test_a_chain_outlives_a_certificate_that_has_expired(
    repository: Path, pair: list[TritonServer], scores: list[float], tmp_path: Path, mutual: bool
) -> None:
    """The server's, or (mutual) the client's as well: an attempt, and the next scorer answers."""
    authority = Authority.write(tmp_path / "expired", "localhost", expired=True)
    with TlsTriton(repository, authority, mutual=mutual) as server:
        tls = authority.tls(mutual=mutual, server_name="localhost")  # localhost itself may be ::1 too, refused
        first = TritonScorer(server.grpc_target, NAME, name="first", options=TritonOptions(tls=tls))
        second = TritonScorer(pair[0].grpc_target, NAME, name="second")
        with RerankClient(scorer=FallbackScorer([first, second]), timeout_s=20.0) as client:
            result = client.rerank(QUERY, DOCUMENTS)
        with secure(server.grpc_target, tls) as alone, pytest.raises(RerankError) as error:
            alone.rerank(QUERY, DOCUMENTS)
    assert result.served_by == "second"
    assert [(attempt.scorer, attempt.error) for attempt in result.attempts] == [("first", "ConfigurationError")]
    assert [document.score for document in result] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    assert type(error.value) is ConfigurationError
    assert "certificate has expired" in str(error.value)


@pytest.fixture
def restricted(repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """Wants a header for everything that the client does but for health; so its start asks no canary."""
    folder = Path(shutil.copytree(repository, tmp_path / "model_repository"))
    (folder / NAME / "1" / MANIFEST_FILE).unlink()
    with start(folder, "--grpc-restricted-protocol=inference,model-config:secret=open-sesame") as server:
        yield server


def test_a_restricted_protocol_wants_its_header(restricted: TritonServer, scores: list[float]) -> None:
    header = {"triton-grpc-protocol-secret": "open-sesame"}
    with RerankClient(restricted.grpc_target, model=NAME, options=TritonOptions(headers=header)) as client:
        assert client.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=1e-6)
    with RerankClient(restricted.grpc_target, model=NAME) as client:
        assert client.score(QUERY, DOCUMENTS, headers=header) == pytest.approx(scores, abs=1e-6)
        for headers in (None, {"triton-grpc-protocol-secret": "wrong"}):
            with pytest.raises(ConfigurationError, match="restricted") as error:
                client.score(QUERY, DOCUMENTS, headers=headers)
            assert "open-sesame" not in str(error.value)


def test_pings_of_a_client_that_waits_long_do_not_end_its_connection(pair: list[TritonServer]) -> None:
    """By default Triton ends a connection, with every call on it, at the third ping that it finds too early."""
    settings, ping = bytes(3) + b"\x04" + bytes(5), bytes([0, 0, 8, 6]) + bytes(5 + 8)
    with socket.create_connection(("127.0.0.1", pair[0].grpc_port), timeout=20) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        with connection.makefile("rb") as frames:
            for _ in range(8):
                connection.sendall(ping)
                kind = 0
                while kind != ping[3]:
                    head = frames.read(9)
                    kind = head[3]
                    assert kind != 7, "GOAWAY"
                    frames.read(int.from_bytes(head[:3], "big"))


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests(
    pair: list[TritonServer], scores: list[float], compression: Literal["gzip", "deflate"]
) -> None:
    """Triton reads them, and they are smaller on the wire."""
    sizes = {}
    for used in (None, compression):
        with (
            Door(pair[0].grpc_port) as door,
            RerankClient(f"127.0.0.1:{door.port}", model=NAME, options=TritonOptions(compression=used)) as client,
        ):
            assert client.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=1e-6)
            client.score(QUERY, [f"{number} {'gzip shrinks files ' * 100}" for number in range(20)])
            sizes[used] = door.sent_bytes
    assert sizes[compression] < 0.3 * sizes[None]


def test_an_answer_above_grpcs_own_limit_arrives(tiny_repository: Path) -> None:
    """4 MiB is what gRPC takes unless told otherwise, also where other channel arguments are given."""

    async def run(target: str) -> list[float]:
        async with AsyncRerankClient(target, model=NAME) as client:
            return await client.score(QUERY, DOCUMENTS)

    with serve(StandIn(tiny_repository, extra_bytes=20 * 2**20)) as server:
        target = f"127.0.0.1:{server.port}"
        with RerankClient(target, model=NAME) as client:
            assert (
                client.score(QUERY, DOCUMENTS)
                == asyncio.run(run(target))
                == sorted(client.score(QUERY, DOCUMENTS))[::-1]
            )


@pytest.mark.parametrize("size", [1_000, 1_000_000, 15_000_000])
def test_a_request_of_any_size_is_sent_again(tiny_repository: Path, size: int) -> None:
    """gRPC keeps 256 KiB of a request for a retry unless told otherwise."""
    with serve(StandIn(tiny_repository, refusals=1)) as server:
        with RerankClient(f"127.0.0.1:{server.port}", model=NAME) as client:
            assert len(client.score(QUERY, ["x" * size])) == 1
        assert server.inferences == 2
        assert len(server.request.raw_input_contents[1]) == size + 4


def test_a_handshake_that_takes_long_is_waited_for(pair: list[TritonServer]) -> None:
    """Far away, or on a busy machine: half a second until the server's first byte is no outage."""
    with Door(pair[0].grpc_port, delay_s=0.5) as door, RerankClient(f"127.0.0.1:{door.port}", model=NAME) as client:
        assert len(client.rerank(QUERY, DOCUMENTS)) == 3


def test_one_client_for_32_threads(pair: list[TritonServer], scores: list[float]) -> None:
    with RerankClient(",".join(server.grpc_target for server in pair), model=NAME, timeout_s=30.0) as client:
        samples = at_once(lambda n: client.score(QUERY, DOCUMENTS[n % 3 :] + DOCUMENTS[: n % 3]), 32)
        with Load(lambda n: client.score(QUERY, DOCUMENTS[n % 3 :] + DOCUMENTS[: n % 3]), threads=32) as load:
            load.wait_for(200)
    assert [sample.error for sample in samples] == [None] * 32
    assert load.errors == []
    rotations = {tuple(round(score, 5) for score in scores[n:] + scores[:n]) for n in range(3)}
    assert {tuple(round(score, 5) for score in sample.result) for sample in load.samples} == rotations


def test_one_client_for_100_tasks(pair: list[TritonServer], scores: list[float]) -> None:
    async def run() -> list[list[float]]:
        target = ",".join(server.grpc_target for server in pair)
        async with AsyncRerankClient(target, model=NAME, timeout_s=30.0) as client:
            return await asyncio.gather(*(client.score(QUERY, DOCUMENTS) for _ in range(100)))

    answers = asyncio.run(run())
    assert len(answers) == 100
    assert all(answer == pytest.approx(scores, abs=1e-5) for answer in answers)


def test_one_async_client_in_two_event_loops(pair: list[TritonServer], scores: list[float]) -> None:
    """pydantic/pydantic-ai#748, towhee-io/towhee#2714: "Event loop is closed" at the second asyncio.run."""
    client = AsyncRerankClient(pair[0].grpc_target, model=NAME)

    async def ask(*, close: bool) -> list[float]:
        found = await client.score(QUERY, DOCUMENTS)
        if close:
            await client.aclose()
        return found

    assert asyncio.run(ask(close=False)) == pytest.approx(scores, abs=1e-6)
    assert asyncio.run(ask(close=True)) == pytest.approx(scores, abs=1e-6)


FORKS = """
import os, sys, time
from triton_rerank import ConfigurationError, RerankClient
client = RerankClient(sys.argv[1], model="tiny-bert")
before = client.score("q", ["a", "b"])
child = os.fork()
if child == 0:
    began_s = time.monotonic()
    try:
        client.score("q", ["a", "b"])
    except ConfigurationError as exc:
        assert "fork" in str(exc), exc
        client.close()
        del client
        assert time.monotonic() - began_s < 1.0
        if len(sys.argv) > 2:
            with RerankClient(sys.argv[1], model="tiny-bert") as own:
                print("own", own.is_ready(), own.score("q", ["a", "b"]) == before, flush=True)
        sys.exit(7)
    sys.exit(1)
for _ in range(3):
    assert client.score("q", ["a", "b"]) == before
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert client.score("q", ["a", "b"]) == before
client.close()
print("done")
"""


def test_a_forked_child_is_told_and_its_parent_goes_on(pair: list[TritonServer]) -> None:
    """grpc/grpc#18075, grpc/grpc#22624: a call hung in a process that was forked after the first call."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, pair[0].grpc_target], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
