"""A call ends when it said, whatever the server does, and the server drops the work of a call that ended."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.load import BusyClock, Load, Sample, at_once, timed
from support.slow_model import ENCODER, NAME, write_slow
from support.stand_in import StandIn, serve
from support.tritons import again, computed, frozen, only_bert, received, start, wait_until
from tritonclient.utils import InferenceServerException

from triton_rerank import (
    AsyncRerankClient,
    DeadlineExceededError,
    RerankClient,
    RerankError,
    ServerUnavailableError,
    TransportError,
    TritonOptions,
)
from triton_rerank_server import TritonServer

QUERY, FEW = "how to zip a file", ["gzip shrinks files", "the cat sat on the mat"]
MANY = [f"document {number}" for number in range(600)]  # three sub-requests
TIMEOUT_S = 0.5
LATE_S = 0.1  # what most calls may take beyond their deadline, where the machine wakes threads in time
WAKINGS = 3  # of a call that ends by its deadline: gRPC's timer, its poller, the caller
THREADS = 16
AT_ONCE = TritonOptions(concurrency=8)  # parts of a request under way together


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_bert(tiny_repository, tmp_path_factory.mktemp("deadlines") / "model_repository")


@pytest.fixture(scope="module")
def slow(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton that takes 0.2 s a request, one at a time; its logits are the seconds that a request may queue."""
    with start(
        write_slow(tiny_repository, tmp_path_factory.mktemp("slow") / "model_repository", delay_s=0.2)
    ) as server:
        yield server


@pytest.fixture(scope="module")
def running(repository: Path) -> Iterator[list[TritonServer]]:
    pair = [start(repository), start(repository)]
    try:
        for server in pair:
            server.start()
        yield pair
    finally:
        for server in pair:
            server.stop(kill=True)


@pytest.fixture
def servers(running: list[TritonServer]) -> list[TritonServer]:
    """Two that run; the first is for freezing, and answers: calls that the test before cancelled may yet crash it."""
    with RerankClient(running[0].grpc_target, model=NAME) as client:
        assert recovers(running, lambda: client.rerank(QUERY, FEW))
    return running


def revive(servers: list[TritonServer]) -> None:
    """Triton 2.51 may crash on calls that were cancelled (its issues 7368 and 8034): start it again."""
    if servers[0].wait(0) is not None:
        print("triton crashed on cancelled calls, and was started again")
        servers[0] = again(servers[0])
        servers[0].start()


def recovers(servers: list[TritonServer], ask: Callable[[], Any]) -> bool:
    """True once a call is answered, by the server that was frozen or by its successor on the same port."""

    def answered() -> bool:
        revive(servers)
        try:
            return bool(ask())
        except (RerankError, InferenceServerException):
            return False

    return wait_until(answered, 20)


def in_time(busy: BusyClock, what: str, samples: list[Sample], timeout_s: float = TIMEOUT_S) -> None:
    """Every call ended in time, with an error that says so or with what a client says of itself.

    Where cores are busy, single calls end later by what gRPC's own threads wait for one; a retry with a deadline of its
    own, or a wait that is not bounded, would be late by all of ``timeout_s``.
    """
    beyond_s = sorted(late_s for sample in samples if (late_s := sample.took_s - timeout_s) > 0) or [0.0]
    half_s, last_s = beyond_s[len(beyond_s) // 2], beyond_s[-1]
    ends_s = [sample.began_s + sample.took_s for sample in samples]
    woken_s = busy.late_s(min(sample.began_s for sample in samples), max(ends_s))
    kinds = Counter(type(sample.error or sample.result).__name__ for sample in samples)
    print(
        f"{what:<24} {len(samples):>3} calls; half of those that ran out ended within {half_s * 1e3:.1f} ms beyond the "
        f"deadline, the last {last_s * 1e3:.1f} ms (a thread woke {woken_s * 1e3:.1f} ms late)",
        dict(kinds),
    )
    assert half_s < LATE_S + WAKINGS * woken_s
    assert last_s < timeout_s
    assert all(isinstance(sample.error, TransportError) for sample in samples if sample.error is not None)


def calls_of(client: Any) -> dict[str, Callable[[int], Any]]:
    return {
        "rerank": lambda _: client.rerank(QUERY, FEW),
        "rerank, split": lambda _: client.rerank(QUERY, MANY),
        "score, own timeout": lambda _: client.score(QUERY, FEW, timeout_s=TIMEOUT_S),
        "rerank_many": lambda _: client.rerank_many([QUERY] * 6, [FEW] * 6, concurrency=2),
        "is_ready": lambda _: client.is_ready(timeout_s=TIMEOUT_S),
        "model_info": lambda _: client.model_info(),
    }


def test_calls_of_threads_to_a_frozen_server_end_in_time(servers: list[TritonServer], busy: BusyClock) -> None:
    target = servers[0].grpc_target
    with RerankClient(target, model=NAME, timeout_s=TIMEOUT_S, options=AT_ONCE) as client:
        before = client.rerank(QUERY, FEW, timeout_s=10.0)
        with frozen(servers[0]):
            for name, call in calls_of(client).items():
                samples = at_once(call, THREADS)
                in_time(busy, name, samples)
                assert not any(sample.result for sample in samples if isinstance(sample.result, bool))
                outcomes = [entry for sample in samples if isinstance(sample.result, list) for entry in sample.result]
                assert all(isinstance(entry, TransportError) for entry in outcomes)
            with RerankClient(target, model=NAME, timeout_s=TIMEOUT_S) as fresh:
                in_time(busy, "first call of a client", at_once(lambda _: fresh.rerank(QUERY, FEW), THREADS))
        logits = [ranked.logit for ranked in before]
        assert recovers(servers, lambda: [ranked.logit for ranked in client.rerank(QUERY, FEW)] == logits)


def test_calls_of_tasks_to_a_frozen_server_end_in_time(servers: list[TritonServer], busy: BusyClock) -> None:
    target = servers[0].grpc_target

    async def run() -> None:
        async with AsyncRerankClient(target, model=NAME, timeout_s=TIMEOUT_S, options=AT_ONCE) as client:
            await client.rerank(QUERY, FEW, timeout_s=10.0)
            with frozen(servers[0]):
                for name, call in calls_of(client).items():
                    in_time(busy, f"async {name}", await asyncio.gather(*(timed_async(call) for _ in range(THREADS))))
                async with AsyncRerankClient(target, model=NAME, timeout_s=TIMEOUT_S) as fresh:
                    calls = [timed_async(lambda _: fresh.rerank(QUERY, FEW)) for _ in range(THREADS)]
                    in_time(busy, "async first call", await asyncio.gather(*calls))
            loop = asyncio.get_running_loop()

            def ask() -> int:
                return len(asyncio.run_coroutine_threadsafe(client.rerank(QUERY, FEW), loop).result(10))

            assert await asyncio.to_thread(recovers, servers, ask)

    asyncio.run(run())


async def timed_async(call: Callable[[int], Any]) -> Sample:
    began_s = time.monotonic()
    try:
        result = await call(0)
    except RerankError as exc:
        return Sample(began_s, time.monotonic() - began_s, None, exc)
    return Sample(began_s, time.monotonic() - began_s, result, None)


def test_one_of_two_servers_freezes(servers: list[TritonServer], busy: BusyClock) -> None:
    """It is left out once the first calls to it have expired, and comes back."""
    target = ",".join(server.grpc_target for server in servers)
    with RerankClient(target, model=NAME, timeout_s=TIMEOUT_S) as client:
        client.rerank(QUERY, FEW, timeout_s=10.0)
        with Load(lambda _: client.score(QUERY, FEW), threads=THREADS, pause_s=0.05) as load:
            load.wait_for(100)
            began_s = time.monotonic()
            with frozen(servers[0]):
                time.sleep(5)
                end_s = time.monotonic()
            load.wait_for(20)  # one that crashes in thaw has done so by now
            assert recovers(servers, lambda: received(servers[0].grpc_target) >= 0)
            so_far = received(servers[0].grpc_target)
            assert recovers(servers, lambda: received(servers[0].grpc_target) >= so_far + 20), "it gets no traffic"
            print(f"traffic {time.monotonic() - end_s:.1f} s after it was thawed")
    asked = load.between(began_s, end_s)
    failed = [sample for sample in asked if sample.error is not None]
    print(f"{len(failed)} of {len(asked)} calls failed, at {sorted(round(s.began_s - began_s, 1) for s in failed)} s")
    in_time(busy, "under load", asked)
    assert len(failed) < len(asked) / 10
    assert all(isinstance(error, RerankError) and error.falls_back for error in load.errors)  # a crash in thaw, too
    print("after it was thawed:", [str(s.error) for s in load.between(end_s, math.inf) if s.error is not None][:3])


def test_keepalive_ends_the_connection_to_a_frozen_server(servers: list[TritonServer]) -> None:
    """A call with much time does not wait for all of it once the connection is known to be dead."""
    options = TritonOptions(keepalive_s=1.0, keepalive_timeout_s=0.5, retries=0)
    with RerankClient(servers[0].grpc_target, model=NAME, timeout_s=20.0, options=options) as client:
        client.rerank(QUERY, FEW)
        with frozen(servers[0]):
            sample = timed(lambda: client.rerank(QUERY, FEW))
        print(f"given up after {sample.took_s:.1f} s of 20 s: {sample.error}")
        assert isinstance(sample.error, ServerUnavailableError)
        assert sample.took_s < 10.0
        assert recovers(servers, lambda: client.rerank(QUERY, FEW))


def test_keepalive_leaves_a_slow_server_alone(tiny_repository: Path, tmp_path: Path) -> None:
    """Pings while a call takes long are few enough for Triton, which would end the connection for too many."""
    options = TritonOptions(keepalive_s=0.2, keepalive_timeout_s=1.0, retries=0)
    repository = write_slow(tiny_repository, tmp_path / "model_repository", delay_s=2.0)
    with (
        start(repository) as server,
        RerankClient(server.grpc_target, model=NAME, timeout_s=30.0, options=options) as client,
    ):
        samples = at_once(lambda _: client.score(QUERY, FEW), 2)
    assert [sample.error for sample in samples] == [None, None]


@pytest.mark.parametrize("timeout_s", [2.5, 5.0])
def test_what_is_left_of_the_deadline_is_the_time_in_tritons_queue(slow: TritonServer, timeout_s: float) -> None:
    with RerankClient(slow.grpc_target, model=NAME) as client:
        client.score(QUERY, FEW)
        (first, *_) = client.rerank(QUERY, FEW, timeout_s=timeout_s)
        assert first.logit is not None
        assert timeout_s - 0.3 < first.logit <= timeout_s
        parts = client.rerank(QUERY, MANY[:12], timeout_s=timeout_s)  # three requests, one after the other
        assert all(ranked.logit is not None and ranked.logit <= timeout_s for ranked in parts)


def test_work_of_calls_that_expired_is_dropped(slow: TritonServer, busy: BusyClock) -> None:
    """40 are sent, 0.2 s each, and wait for 0.7 s at most."""
    with RerankClient(slow.grpc_target, model=NAME) as client:
        client.score(QUERY, FEW)
        sent, done = received(slow.grpc_target), computed(slow.grpc_target, ENCODER)
        samples = at_once(lambda _: client.score(QUERY, MANY[:4], timeout_s=0.7), 40)
        expired = [sample for sample in samples if sample.error is not None]
        began_s = time.monotonic()
        client.score(QUERY, FEW, timeout_s=10.0)  # comes last in the queue
        waited_s = time.monotonic() - began_s
        sent, done = received(slow.grpc_target) - sent - 1, computed(slow.grpc_target, ENCODER) - done - 1
    print(f"sent {sent}, computed {done}, expired {len(expired)}; the next call took {waited_s:.2f} s")
    in_time(busy, "queued", samples, 0.7)
    assert len(expired) >= 30
    assert {type(sample.error) for sample in expired} == {DeadlineExceededError}
    assert done <= 10 <= sent
    assert waited_s < 3.0


async def cancelled_once(calls: list[asyncio.Task[Any]], sent: Callable[[], bool]) -> None:
    """Cancel all of them when that comes true."""
    assert await asyncio.to_thread(wait_until, sent, 20)
    for call in calls:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * len(calls)


def test_cancelling_a_task_cancels_its_calls_at_the_server(tiny_repository: Path) -> None:
    """Parts under way are cancelled there, and no further part is sent."""
    thousands = [f"document {number}" for number in range(4000)]  # 16 parts

    async def run(server: StandIn) -> None:
        target = f"127.0.0.1:{server.port}"
        async with AsyncRerankClient(target, model=NAME, timeout_s=60.0, options=AT_ONCE) as client:
            calls = [asyncio.create_task(client.score(QUERY, thousands)) for _ in range(2)]
            await cancelled_once(calls, lambda: server.inferences >= 2)
            assert wait_until(lambda: server.cancelled == server.inferences, 5)

    with serve(StandIn(tiny_repository, hold=True)) as server:
        asyncio.run(run(server))
        assert 2 <= server.inferences <= 2 * 8


def test_a_cancelled_task_leaves_no_more_in_tritons_queue_than_its_deadline_allows(slow: TritonServer) -> None:
    """On a cancellation Triton leaves a step of an ensemble in that step's queue; the timeout takes it out."""

    async def run() -> tuple[int, int]:
        async with AsyncRerankClient(slow.grpc_target, model=NAME, timeout_s=1.0, options=AT_ONCE) as client:
            await client.score(QUERY, FEW, timeout_s=10.0)
            sent, done = received(slow.grpc_target), computed(slow.grpc_target, ENCODER)
            calls = [asyncio.create_task(client.score(QUERY, MANY[:40])) for _ in range(4)]  # ten parts each
            await cancelled_once(calls, lambda: received(slow.grpc_target) - sent >= 30)
            await client.score(QUERY, FEW, timeout_s=20.0)
            return received(slow.grpc_target) - sent - 1, computed(slow.grpc_target, ENCODER) - done - 1

    sent, done = asyncio.run(run())
    print(f"sent {sent}, computed {done}")
    assert done <= 12 < 30 <= sent < 40


def test_a_part_that_fails_ends_the_call_before_its_deadline(slow: TritonServer, busy: BusyClock) -> None:
    """The deadline is one for all parts: 30 of 0.2 s cannot be done in 1 s, and no later part is sent."""
    with RerankClient(slow.grpc_target, model=NAME, timeout_s=TIMEOUT_S, options=AT_ONCE) as client:
        client.score(QUERY, FEW, timeout_s=10.0)
        sent = received(slow.grpc_target)
        samples = [timed(lambda: client.score(QUERY, MANY[:120])) for _ in range(3)]
        in_time(busy, "thirty parts", samples)
        assert all(isinstance(sample.error, RerankError) for sample in samples)
        assert wait_until(lambda: client.is_ready(), 5)
        assert received(slow.grpc_target) - sent < 3 * 30
