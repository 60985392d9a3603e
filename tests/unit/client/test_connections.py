"""A client's connections over its life: names that move, event loops that end, cancellations, closing."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.stand_in import StandIn, serve
from support.tritons import wait_until

from triton_rerank import AsyncRerankClient, RerankClient, RerankError, ServerUnavailableError, TritonOptions

MODEL = "tiny-bert"
FAST = TritonOptions(lookup_s=0.05)


class Names:
    """Stands in for the resolver: a name -> addresses, which may change; others are asked of the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked = 0
        self._system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, *arguments: Any, **named: Any) -> Any:
        if host not in self.known:
            return self._system(host, *arguments, **named)
        self.asked += 1
        if not self.known[host]:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.known[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.fixture
def servers(tiny_repository: Path) -> Iterator[list[StandIn]]:
    """Three, on one port of 127.0.0.2 to 127.0.0.4."""
    with ExitStack() as stack:
        port = 0
        made = []
        for last in (2, 3, 4):
            server = StandIn(tiny_repository)
            server.port = port
            made.append(stack.enter_context(serve(server, f"127.0.0.{last}")))
            port = server.port
        yield made


def answered(client: RerankClient) -> bool:
    try:
        return bool(client.score("q", ["a"], timeout_s=0.5))
    except RerankError:
        return False


def counts(servers: list[StandIn]) -> list[int]:
    return [server.inferences for server in servers]


class Caller:
    """Calls in a loop, from a thread or an event loop, until it is over; notes what was raised."""

    def __init__(self, kind: str, target: str, options: TritonOptions = FAST) -> None:
        self.calls = 0
        self.errors: list[RerankError] = []
        self._over = threading.Event()
        self._target, self._options = target, options
        self._thread = threading.Thread(target=self._sync if kind == "sync" else lambda: asyncio.run(self._async()))

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _note(self, exc: RerankError | None) -> None:
        self.calls += 1
        if exc is not None:
            self.errors.append(exc)

    def _sync(self) -> None:
        with RerankClient(self._target, model=MODEL, options=self._options) as client:
            while not self._over.is_set():
                try:
                    client.score("q", ["a", "b"])
                except RerankError as exc:
                    self._note(exc)
                else:
                    self._note(None)
                time.sleep(0.002)

    async def _async(self) -> None:
        async with AsyncRerankClient(self._target, model=MODEL, options=self._options) as client:
            while not self._over.is_set():
                try:
                    await client.score("q", ["a", "b"])
                except RerankError as exc:
                    self._note(exc)
                else:
                    self._note(None)
                await asyncio.sleep(0.002)


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_a_server_that_a_name_of_a_list_gains_gets_calls_and_none_is_lost(
    kind: str, names: Names, servers: list[StandIn]
) -> None:
    names.known = {"a.test": ["127.0.0.2"], "b.test": ["127.0.0.3"]}
    port = servers[0].port
    with Caller(kind, f"a.test:{port},b.test:{port}") as caller:
        assert wait_until(lambda: min(counts(servers[:2])) >= 3, 20)
        assert servers[2].inferences == 0
        names.known["b.test"] = ["127.0.0.3", "127.0.0.4"]
        assert wait_until(lambda: servers[2].inferences >= 3, 20)
    assert caller.errors == []


@both
def test_names_that_moved_are_followed_within_the_call_that_found_nobody(
    kind: str, names: Names, servers: list[StandIn], tiny_repository: Path
) -> None:
    names.known = {"a.test": ["127.0.0.5"], "b.test": ["127.0.0.5"]}
    options = TritonOptions(lookup_s=3600)  # so that only the failed call looks
    with (
        serve(StandIn(tiny_repository), "127.0.0.5") as first,
        serve(_on_port(tiny_repository, first.port), "127.0.0.6"),
    ):
        target = f"a.test:{first.port},b.test:{first.port}"

        def move() -> None:
            time.sleep(1.0)  # a name is looked up once a second at most
            first.stop()
            names.known = {"a.test": ["127.0.0.6"], "b.test": ["127.0.0.6"]}

        async def ask_async() -> list[float]:
            async with AsyncRerankClient(target, model=MODEL, options=options) as client:
                await client.score("q", ["a"])
                await asyncio.to_thread(move)
                return await client.score("q", ["a"])

        def ask() -> list[float]:
            with RerankClient(target, model=MODEL, options=options) as client:
                client.score("q", ["a"])
                move()
                return client.score("q", ["a"])

        assert len(ask() if kind == "sync" else asyncio.run(ask_async())) == 1


def _on_port(repository: Path, port: int) -> StandIn:
    server = StandIn(repository)
    server.port = port
    return server


@both
def test_names_that_cannot_be_looked_up_stand_for_what_they_stood_for(
    kind: str, names: Names, servers: list[StandIn]
) -> None:
    names.known = {"a.test": ["127.0.0.2"], "b.test": ["127.0.0.3"]}
    port = servers[0].port
    with Caller(kind, f"a.test:{port},b.test:{port}") as caller:
        assert wait_until(lambda: caller.calls >= 3, 20)
        names.known = {"a.test": [], "b.test": []}
        asked, calls = names.asked, caller.calls
        assert wait_until(lambda: names.asked > asked + 2 and caller.calls > calls + 10, 20)
    assert caller.errors == []


def test_calls_under_way_outlive_the_channel_that_they_began_on(
    names: Names, servers: list[StandIn], tiny_repository: Path
) -> None:
    slow = StandIn(tiny_repository)
    gate = slow.gate = threading.Event()
    with serve(slow, "127.0.0.9"), serve(_on_port(tiny_repository, slow.port), "127.0.0.8") as fast:
        names.known = {"a.test": ["127.0.0.9"], "b.test": ["127.0.0.9"]}
        with (
            RerankClient(f"a.test:{slow.port},b.test:{slow.port}", model=MODEL, options=FAST) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            under_way = pool.submit(client.score, "q", ["a", "b"])
            assert wait_until(lambda: slow.inferences == 1, 20)
            names.known = {"a.test": ["127.0.0.8"], "b.test": ["127.0.0.8"]}
            assert wait_until(lambda: answered(client) and fast.inferences > 0, 20)
            gc.collect()
            gate.set()
            assert under_way.result(20) == [0.5, pytest.approx(0.2689, abs=1e-3)]


def test_a_single_name_whose_addresses_change_gets_a_new_connection(names: Names, servers: list[StandIn]) -> None:
    """grpc/grpc#12295, grpc/grpc#14097: a client went on with addresses that a name had no longer."""
    names.known = {"localhost": ["127.0.0.1"]}
    scorer_target = f"localhost:{servers[0].port}"
    with RerankClient(scorer_target, model=MODEL, options=FAST) as client:
        connections = client.scorer._connections  # type: ignore[attr-defined]
        with pytest.raises(ServerUnavailableError):
            client.score("q", ["a"])
        assert wait_until(lambda: connections.places is not None, 10)
        before = connections._opened[None]
        names.known["localhost"] = ["127.0.0.1", "127.0.0.9"]
        time.sleep(FAST.lookup_s)
        with pytest.raises(ServerUnavailableError):
            client.score("q", ["a"])

        def reopened() -> bool:
            client.is_ready(timeout_s=1.0)
            return connections._opened[None] is not before

        assert wait_until(reopened, 10)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "left open"])
def test_event_loops_that_ended_are_let_go(tiny_repository: Path, close: bool) -> None:
    with serve(StandIn(tiny_repository)) as server:
        client = AsyncRerankClient(f"127.0.0.1:{server.port}", model=MODEL)
        loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

        async def ask() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            await client.score("q", ["a"])
            if close:
                await client.scorer.aclose()

        for _ in range(20):
            asyncio.run(ask())
        gc.collect()
        assert sum(loop() is not None for loop in loops) <= 1


@pytest.mark.parametrize("first", ["cancelled", "closed"])
def test_a_task_that_was_cancelled_says_so_though_the_client_is_closed(tiny_repository: Path, first: str) -> None:
    async def main(target: str) -> object:
        client = AsyncRerankClient(target, model=MODEL)
        await client.model_info()
        task = asyncio.ensure_future(client.score("q", ["a"]))
        await asyncio.sleep(0.1)
        if first == "cancelled":
            task.cancel()
        await client.aclose()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        return outcome

    with serve(StandIn(tiny_repository, hold=True)) as server:
        outcome = asyncio.run(main(f"127.0.0.1:{server.port}"))
    assert type(outcome).__name__ == ("CancelledError" if first == "cancelled" else "ConfigurationError")


def test_a_bug_in_one_query_ends_the_others(tiny_repository: Path) -> None:
    class Bug(str):
        def encode(self, *_: Any) -> bytes:
            raise ZeroDivisionError

    async def main(target: str) -> None:
        async with AsyncRerankClient(target, model=MODEL) as client:
            await client.model_info()
            with pytest.raises(ZeroDivisionError):
                await client.rerank_many(["q", Bug("b")], [["a"], ["b"]])
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    with serve(StandIn(tiny_repository, hold=True)) as server:
        asyncio.run(main(f"127.0.0.1:{server.port}"))
