"""The gateway as a process in front of real Tritons: drained, killed under it, frozen, traced."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.gateways import process, running, wait_for
from support.load import Load
from support.slow_model import write_slow
from support.stand_in import StandIn, serve
from support.tritons import NAME, frozen, kill, only_bert, start

from triton_rerank_bench.machine import OtherLoad
from triton_rerank_gateway import Settings
from triton_rerank_server import TritonServer

BODY = {"query": "how to zip a file", "documents": ["gzip shrinks files", "the cat sat on the mat"] * 4}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def bert(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with start(only_bert(tiny_repository, tmp_path_factory.mktemp("gateway") / "model_repository")) as server:
        yield server


def test_sigterm_under_load_loses_no_request_that_was_taken(bert: TritonServer, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    with (
        process(bert.grpc_target, log=log) as (child, url),
        httpx.Client(timeout=60) as client,
        Load(lambda _: client.post(f"{url}/v1/rerank", json=BODY), threads=8) as load,
    ):
        load.wait_for(40, timeout_s=60)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    statuses = {sample.result.status_code for sample in load.samples if sample.result is not None}
    # A connection that stood idle may be closed as a request is written to it; what was read is answered.
    assert statuses == {200}
    assert all(isinstance(error, httpx.TransportError) for error in load.errors)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    answered = [line for line in lines if line["event"] == "request" and line["status"] == 200]
    assert len(answered) >= len([sample for sample in load.samples if sample.result is not None]) >= 40
    assert not [line for line in lines if line["event"] == "request" and line["status"] != 200]
    assert {"request_id", "dialect", "model", "waited_s", "scoring_s", "total_s", "pairs", "tokens"} <= set(answered[0])
    assert "zip" not in log.read_text()


def test_kill_9_of_one_of_two_tritons_fails_no_request(
    bert: TritonServer, tiny_repository: Path, tmp_path: Path
) -> None:
    with start(only_bert(tiny_repository, tmp_path / "model_repository")) as other:
        settings = Settings(port=0, target=f"{bert.grpc_target},{other.grpc_target}", model=(NAME,), timeout_s=30.0)
        with running(settings) as gateway, Load(lambda _: gateway.post("/v1/rerank", BODY), threads=6) as load:
            load.wait_for(60, timeout_s=60)
            kill(other)
            load.wait_for(120, timeout_s=60)
    assert load.errors == []
    assert {sample.result.status_code for sample in load.samples} == {200}


def test_a_frozen_triton_is_504_within_the_deadline_and_a_tenth_of_a_second(bert: TritonServer) -> None:
    """The best of some attempts counts: other work on the machine makes them later, never earlier."""
    settings = Settings(port=0, target=bert.grpc_target, model=(NAME,), canary_interval_s=3600.0)
    took_s = []
    with running(settings) as gateway, OtherLoad() as other:
        for _ in range(5):
            wait_for(lambda: gateway.post("/v1/rerank", BODY).status_code == 200, 60)
            with frozen(bert):
                began_s = time.monotonic()
                found = gateway.post("/v1/rerank", {**BODY, "timeout_ms": 1000})
                took_s.append(time.monotonic() - began_s)
            assert found.status_code == 504 and found.json()["error"]["type"] == "deadline"
            if took_s[-1] <= 1.1:
                break
    print(f"a deadline of 1 s was answered after {', '.join(f'{each:.3f}' for each in took_s)} s")
    assert min(took_s) > 0.9
    if min(took_s) > 1.1 and other.share() > 0.2:
        pytest.skip(
            f"504 after {min(took_s):.3f} s; others used {other.share():.0%} of all cores, so that says nothing"
        )
    assert min(took_s) <= 1.1


def test_what_is_left_of_the_deadline_travels_to_triton(tiny_repository: Path, tmp_path: Path) -> None:
    """The slow model's logits are the seconds that the request says it may wait."""
    repository = write_slow(tiny_repository, tmp_path / "slow", delay_s=0.01, max_batch_size=8)
    with start(repository) as server:
        settings = Settings(port=0, target=server.grpc_target, model=(NAME,), canary_interval_s=3600.0)
        with running(settings) as gateway:
            found = gateway.post("/v1/rerank", {**BODY, "timeout_ms": 7000, "return_logits": True})
    assert 5 < found.json()["results"][0]["logit"] <= 7


def test_a_caller_that_hangs_up_cancels_its_call_of_triton(tiny_repository: Path) -> None:
    with serve(StandIn(tiny_repository, hold=True)) as stand_in:
        settings = Settings(port=0, target=f"127.0.0.1:{stand_in.port}", model=(NAME,), canary_interval_s=3600.0)
        with running(settings) as gateway:
            wait_for(lambda: stand_in.inferences >= 1)  # the canary
            content = json.dumps({**BODY, "timeout_ms": 30_000}).encode()
            head = f"POST /v1/rerank HTTP/1.1\r\nhost: h\r\ncontent-length: {len(content)}"
            with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
                caller.sendall(head.encode() + b"\r\n\r\n" + content)
                wait_for(lambda: stand_in.inferences >= 2)
                before = stand_in.cancelled
            wait_for(lambda: stand_in.cancelled > before)
            assert gateway.gateway.admission.queue.in_flight.pairs == 0


def test_the_callers_trace_reaches_triton(tiny_repository: Path) -> None:
    with serve(StandIn(tiny_repository)) as stand_in:
        settings = Settings(port=0, target=f"127.0.0.1:{stand_in.port}", model=(NAME,), canary_interval_s=3600.0)
        with running(settings) as gateway:
            wait_for(lambda: stand_in.inferences >= 1)
            gateway.post("/v1/rerank", BODY, headers={"traceparent": TRACE})
            assert stand_in.headers["traceparent"] == TRACE
            gateway.post("/v1/rerank", BODY, headers={"traceparent": "no trace\tat all"})
            assert "traceparent" not in stand_in.headers


def test_a_port_that_is_taken_ends_the_command_with_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "triton_rerank_gateway.cli", "--model", NAME, "--port", port]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert "address already in use" in found.stderr
    assert "Traceback" not in found.stderr
