"""Hosted scorers against a network that fails, and over event loops, threads and forks."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pytest
import trustme
from support.hosted import KEY, Fault, HostedServer
from support.hosted_calls import SLACK_S, Form, both_forms, failure, run, score
from support.load import BusyClock

from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime
from triton_rerank.core.scorer import Call, PairRequest, Scored
from triton_rerank.errors import DeadlineExceededError, OverloadedError, ServerUnavailableError
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


# Transport, deadline, retries


@both_forms
def test_a_port_that_nobody_listens_on_is_a_server_that_is_not_available(form: Form) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses, and nobody else can take it
        scorer = CohereScorer(KEY, model="m", base_url=f"http://127.0.0.1:{taken.getsockname()[1]}", retries=0)
        error = failure(form, scorer)
        assert run(form, scorer.is_ready) is False
    scorer.close()
    assert type(error) is ServerUnavailableError
    assert error.__cause__ is not None


@both_forms
def test_a_name_that_does_not_resolve_is_a_server_that_is_not_available(form: Form) -> None:
    scorer = CohereScorer(KEY, model="m", base_url="http://no-such-host.invalid", retries=0)
    error = failure(form, scorer)
    scorer.close()
    assert type(error) in (ServerUnavailableError, DeadlineExceededError)  # some resolvers take their time


@both_forms
def test_a_connection_that_is_reset_is_retried_once(form: Form, server: HostedServer, scorer: CohereScorer) -> None:
    server.faults.append(Fault("drop"))
    assert score(form, scorer).requests == 1
    assert len(server.received) == 2
    server.always = Fault("drop")
    assert type(failure(form, scorer)) is ServerUnavailableError
    assert len(server.received) == 4


@both_forms
def test_tls_is_checked_against_what_is_trusted(form: Form) -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with HostedServer("cohere", server_side) as server:
        stranger = CohereScorer(KEY, model="m", base_url=server.url, retries=0)
        error = failure(form, stranger)
        friend = CohereScorer(KEY, model="m", base_url=server.url, ssl_context=trusting)
        assert score(form, friend).requests == 1
        stranger.close()
        friend.close()
    assert type(error) is ServerUnavailableError
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert len(server.received) == 1


@both_forms
@pytest.mark.parametrize("how", ["hang", "trickle_header", "trickle_body"])
def test_a_server_that_answers_too_slowly_ends_with_the_deadline(
    form: Form,
    how: Literal["hang", "trickle_header", "trickle_body"],
    server: HostedServer,
    scorer: CohereScorer,
    busy: BusyClock,
) -> None:
    score(form, scorer)  # the thread and the TLS trust are there
    server.always = Fault(how)
    begin = time.monotonic()
    error = failure(form, scorer, timeout_s=0.4)
    assert busy.own_s(begin) < 0.4 + SLACK_S
    assert type(error) is DeadlineExceededError
    server.always = None
    assert score(form, scorer).requests == 1


def test_a_deadline_ends_the_exchange_on_the_wire(server: HostedServer, scorer: CohereScorer) -> None:
    server.always = Fault("trickle_body")
    failure("sync", scorer, timeout_s=0.3)
    assert _soon(lambda: not _connections_to(server))


def _connections_to(server: HostedServer) -> bool:
    import psutil

    port = int(server.url.rsplit(":", 1)[1])
    mine = psutil.Process().net_connections("tcp")
    return any(c.status == "ESTABLISHED" and c.raddr and c.raddr.port == port for c in mine)


def _soon(holds: Callable[[], bool], within_s: float = 3.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_task_that_is_cancelled_ends_its_exchange(server: HostedServer, scorer: CohereScorer) -> None:
    server.always = Fault("hang")

    async def cancel() -> None:
        request = PairRequest(b"q", (b"d",))
        task = asyncio.create_task(scorer.score(request, Call(Deadline(20.0), AsyncRuntime())))
        while not server.received:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert _soon(lambda: not _connections_to(server))


@both_forms
def test_retry_after_is_waited_for(form: Form, server: HostedServer, scorer: CohereScorer, busy: BusyClock) -> None:
    server.faults.append(Fault(status=429, headers={"Retry-After": "0.4"}))
    begin = time.monotonic()
    assert score(form, scorer).requests == 1
    assert time.monotonic() - begin >= 0.4 and busy.own_s(begin) < 0.4 + 0.1 + 0.3
    assert len(server.received) == 2


@both_forms
def test_retry_after_beyond_the_deadline_fails_at_once(
    form: Form, server: HostedServer, scorer: CohereScorer, busy: BusyClock
) -> None:
    server.always = Fault(status=429, headers={"Retry-After": "30"})
    begin = time.monotonic()
    error = failure(form, scorer, timeout_s=3.0)
    assert busy.own_s(begin) < 1.0
    assert type(error) is OverloadedError
    assert "Retry-After 30 s" in str(error)
    assert len(server.received) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_no_more_than_retries_further_attempts_are_made(retries: int, server: HostedServer) -> None:
    server.always = Fault(status=503)
    scorer = CohereScorer(KEY, model="m", base_url=server.url, retries=retries)
    failure("sync", scorer)
    scorer.close()
    assert len(server.received) == 1 + retries


@both_forms
def test_under_lasting_overload_retries_do_not_multiply_the_requests(form: Form, server: HostedServer) -> None:
    server.always = Fault(status=429, headers={"Retry-After": "0"})
    scorer = CohereScorer(KEY, model="m", base_url=server.url)
    for _ in range(20):
        assert type(failure(form, scorer)) is OverloadedError
    scorer.close()
    assert len(server.received) == 20 + 5  # half of the budget's ten tokens


# Event loops, threads, forks, closing


def test_one_scorer_serves_event_loops_one_after_the_other_and_sync_callers(
    server: HostedServer, scorer: CohereScorer
) -> None:
    expected = score("async", scorer).scores
    for form in ("async", "sync", "async", "async", "sync"):
        assert np.array_equal(score(form, scorer).scores, expected)  # type: ignore[arg-type]
    assert len(server.received) == 6
    assert len({received.client_port for received in server.received}) == 1  # on one connection


def test_two_event_loops_and_eight_threads_share_a_scorer(server: HostedServer, scorer: CohereScorer) -> None:
    faults: list[BaseException] = []

    def work(form: Form) -> None:
        try:
            for _ in range(10):
                scored = score(form, scorer)
                assert scored.scores is not None
                assert scored.scores.argmax() == 1
        except BaseException as exc:  # noqa: BLE001 - told to the test's own thread
            faults.append(exc)

    threads = [threading.Thread(target=work, args=(form,)) for form in ("sync", "async") for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(server.received) == 80


def _http_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "triton-rerank-http"]


def test_close_ends_the_thread_and_the_connection_and_a_later_call_opens_them_again(server: HostedServer) -> None:
    gc.collect()
    assert _soon(lambda: not _http_threads())
    scorer = CohereScorer(KEY, model="m", base_url=server.url)
    assert not _http_threads()  # nothing is opened before it is used
    score("sync", scorer)
    assert len(_http_threads()) == 1
    scorer.close()
    scorer.close()
    assert not _http_threads()
    assert not _connections_to(server)
    score("async", scorer)
    asyncio.run(scorer.aclose())
    assert not _http_threads()


def test_a_scorer_that_is_dropped_ends_its_thread(server: HostedServer) -> None:
    scorer = CohereScorer(KEY, model="m", base_url=server.url)
    score("sync", scorer)
    assert _http_threads()
    del scorer
    gc.collect()
    assert _soon(lambda: not _http_threads())


def test_a_call_under_way_outlives_close(server: HostedServer, scorer: CohereScorer) -> None:
    server.always = Fault("trickle_body")
    results: list[Scored] = []
    one = ("x",)
    thread = threading.Thread(target=lambda: results.append(score("sync", scorer, one, timeout_s=20)))
    thread.start()
    assert _soon(lambda: len(server.received) == 1)
    scorer.close()
    thread.join()
    assert len(results) == 1
    assert _soon(lambda: not _http_threads())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of a fork with threads: it is the test
def test_a_forked_process_opens_its_own_connections(server: HostedServer, scorer: CohereScorer) -> None:
    score("sync", scorer)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if score("sync", scorer).requests == 1 else 1
            scorer.close()
        finally:
            os._exit(code)
    assert _soon(lambda: os.waitpid(child, os.WNOHANG) == (child, 0), within_s=10)
    assert score("sync", scorer).requests == 1  # the parent's loop was left alone
