"""Servers that die and come back: nothing fails while one is left, and the chain holds when none is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.load import Load, Sample, percentile_ms, timed
from support.tritons import NAME, again, kill, only_bert, received, start, wait_until

from triton_rerank import RerankClient, RerankResult, TritonOptions
from triton_rerank.fallback.chain import FallbackScorer
from triton_rerank.local.scorer import LocalScorer
from triton_rerank.triton.scorer import TritonScorer
from triton_rerank_server import TritonServer

QUERY = "how to zip a file"
DOCUMENTS = [f"{number}: gzip shrinks files{' and more' * (number % 4)}" for number in range(16)]
THREADS = 16
PAUSE_S = 0.05  # 16 threads on two cores are to wait for servers, not for each other
OUTAGE_S = 10.0


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_bert(tiny_repository, tmp_path_factory.mktemp("outage") / "model_repository")


@pytest.fixture
def pair(repository: Path) -> Iterator[list[TritonServer]]:
    """Two servers; a test that kills one puts its successor in its place."""
    servers = [start(repository), start(repository)]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop(kill=True)


def targets(servers: list[TritonServer]) -> str:
    return ",".join(server.grpc_target for server in servers)


def documents_of(thread: int) -> list[str]:
    """Each thread has an order of its own, so that an answer of another's would show."""
    return DOCUMENTS[thread:] + DOCUMENTS[:thread]


def check_whole(result: RerankResult[str], thread: int, logits: dict[str, float]) -> None:
    """Every document once, with its own logit, best first."""
    mine = documents_of(thread)
    assert sorted(ranked.index for ranked in result) == list(range(len(mine)))
    assert all(ranked.document is mine[ranked.index] for ranked in result)
    found = logits_of(result)
    assert np.allclose(found, [logits[ranked.document] for ranked in result], atol=1e-3)
    assert (np.diff(found) <= 0).all()


def logits_of(result: RerankResult[str]) -> npt.NDArray[np.float64]:
    """Best first."""
    return np.array([ranked.logit for ranked in result], np.float64)


def report(phases: dict[str, list[Sample]]) -> None:
    for phase, samples in phases.items():
        p50, p99 = percentile_ms(samples, 50), percentile_ms(samples, 99)
        worst = percentile_ms(samples, 100)
        print(f"{phase:<7} {len(samples):>5} calls  p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  most {worst:6.1f} ms")


def test_one_of_two_servers_is_killed_and_comes_back(pair: list[TritonServer]) -> None:
    """kill -9, ten seconds, and back on the same port, under load from 16 threads."""
    with RerankClient(targets(pair), model=NAME, timeout_s=10.0) as client:
        logits = {ranked.document: ranked.logit or 0.0 for ranked in client.rerank(QUERY, DOCUMENTS)}

        def ask(thread: int) -> RerankResult[str]:
            result = client.rerank(QUERY, documents_of(thread))
            check_whole(result, thread, logits)
            return result

        with Load(ask, threads=THREADS, pause_s=PAUSE_S) as load:
            load.wait_for(200)  # connections, allocators and caches are warm now
            began_s = time.monotonic()
            time.sleep(3)
            killed_s = time.monotonic()
            kill(pair[0])
            pair[0] = again(pair[0])
            time.sleep(OUTAGE_S - (time.monotonic() - killed_s))
            pair[0].start()
            back_s = time.monotonic()
            of_its_start = received(pair[0].grpc_target)
            assert wait_until(lambda: received(pair[0].grpc_target) >= of_its_start + 20, 15), "it gets no traffic"
            found_s = time.monotonic() - back_s
            time.sleep(3)
        report(
            {
                "before": load.between(began_s, killed_s),
                "during": load.between(killed_s, back_s),
                "after": load.between(back_s, np.inf),
            }
        )
        print(f"traffic {found_s:.2f} s after it was ready; longest call {max(s.took_s for s in load.samples):.3f} s")
    assert load.errors == []
    assert len(load.samples) > 1000
    assert percentile_ms(load.between(killed_s, back_s), 99) < 5000


@pytest.mark.parametrize(("threads", "pause_s"), [(THREADS, PAUSE_S), (4, 0.3)])
def test_one_of_two_servers_is_stopped_in_order(pair: list[TritonServer], threads: int, pause_s: float) -> None:
    """SIGTERM, as in a rolling restart: Triton refuses what is new for some seconds, ends what runs, and goes.

    With few calls, gRPC sees little of the server that refuses before a call meets it again.
    """
    calls = round(2 * threads / pause_s / 5)
    with RerankClient(targets(pair), model=NAME, timeout_s=10.0) as client:
        client.score(QUERY, DOCUMENTS)
        with Load(lambda _: client.score(QUERY, DOCUMENTS), threads=threads, pause_s=pause_s) as load:
            load.wait_for(calls)
            pair[0].stop()
            load.wait_for(calls)
            pair[0] = again(pair[0])
            pair[0].start()
            load.wait_for(calls)
    assert load.errors == []


def test_with_both_gone_the_local_model_answers_until_one_is_back(
    pair: list[TritonServer], repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote, local = TritonScorer(targets(pair), NAME, name="triton"), LocalScorer(repository, NAME)
    chain = FallbackScorer([remote, local], cool_down_s=1.0, max_cool_down_s=2.0)
    caplog.set_level(logging.WARNING, logger="triton_rerank")
    with RerankClient(scorer=chain, timeout_s=5.0) as client:
        expected = client.rerank(QUERY, DOCUMENTS)
        assert (expected.degraded, expected.served_by, expected.attempts) == (False, "triton", ())
        for server in pair:
            kill(server)
        assert all(server.wait(10) is not None for server in pair)
        for _ in range(20):
            sample = timed(lambda: client.rerank(QUERY, DOCUMENTS))
            assert sample.error is None and sample.took_s < 5.0
            check_degraded(sample.result, expected)
        assert warnings(caplog) == ["fallback: local answers in place of triton"]

        for place, server in enumerate(pair):
            pair[place] = again(server)
            pair[place].start()
        back_s = time.monotonic()
        assert wait_until(lambda: not client.rerank(QUERY, DOCUMENTS).degraded, 15), "the primary does not return"
        print(f"primary again {time.monotonic() - back_s:.2f} s after both were back")
        for _ in range(10):
            assert client.rerank(QUERY, DOCUMENTS).served_by == "triton"
        assert warnings(caplog)[1:] == ["fallback: triton answers again, in place of local"]


def check_degraded(result: RerankResult[str], expected: RerankResult[str]) -> None:
    assert (result.degraded, result.served_by, result.model) == (True, "local", NAME)
    assert result.reason is not None and result.reason.startswith("triton: ")
    assert [attempt.scorer for attempt in result.attempts] == ["triton"]
    assert result.attempts[0].error in ("ServerUnavailableError", "Skipped")
    assert [ranked.index for ranked in result] == [ranked.index for ranked in expected]
    assert np.allclose(logits_of(result), logits_of(expected), atol=1e-3)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said, without why."""
    return [record.getMessage().split(" (")[0] for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_connection_that_died_once_costs_no_later_call(repository: Path) -> None:
    """A server of its own, killed and back: the client finds it without being made anew."""
    server = start(repository)
    server.start()
    try:
        with RerankClient(server.grpc_target, model=NAME, options=TritonOptions(max_reconnect_s=0.5)) as client:
            before = client.score(QUERY, DOCUMENTS)
            kill(server)
            server.wait(10)
            assert not client.is_ready()
            server = again(server)
            server.start()
            assert wait_until(client.is_ready, 10)
            assert client.score(QUERY, DOCUMENTS) == before
    finally:
        server.stop(kill=True)
