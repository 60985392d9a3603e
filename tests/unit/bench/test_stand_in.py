"""The stand-in server that answers at once, and Triton's own counters."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton

from triton_rerank import RerankClient
from triton_rerank_bench.counters import TritonStatistics
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gateway.stand_in import stand_in
from triton_rerank_bench.load.padding import pair_inputs
from triton_rerank_server import TritonServer


def test_the_stand_in_answers_in_no_order_and_ends(tiny_repository: Path) -> None:
    children = set(psutil.Process().children())
    with stand_in(tiny_repository) as target:
        (process,) = set(psutil.Process().children()) - children
        with RerankClient(target, model="tiny-bert") as client:
            result = client.rerank("a query", [f"document {number}" for number in range(100)])
            assert [ranked.index for ranked in result] != list(range(100))  # there was something to sort
            assert len({ranked.logit for ranked in result}) == 100
    assert not process.is_running()


def test_stand_in_answers_with_the_active_version(two_versions: Path) -> None:
    with stand_in(two_versions) as target, RerankClient(target, model="tiny-bert") as client:
        assert client.rerank("a query", ["a document"]).model_version == client.model_info().version == "2"


def test_stand_in_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_rerank_bench.gateway.stand_in.sys.executable", "/bin/false")
    with pytest.raises(BenchError, match="stand-in server did not start"), stand_in(tmp_path):
        pass


def test_stand_in_ends_with_the_process_that_started_it(tiny_repository: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from triton_rerank_bench.gateway.stand_in import stand_in\n"
        "with stand_in(Path(sys.argv[1])):\n"
        "    import psutil; print(psutil.Process().children()[0].pid, flush=True); os._exit(1)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tiny_repository)], capture_output=True, text=True, check=False
    )
    pid, give_up = int(told.stdout), time.monotonic() + 20.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_statistics_count_requests_rows_and_time(server: TritonServer) -> None:
    counters = TritonStatistics(server.grpc_target, "tiny-bert-encoder")
    before = counters.read()
    start = time.perf_counter()
    with triton.InferenceServerClient(server.grpc_target) as client:
        for _ in range(2):
            client.infer("tiny-bert", pair_inputs("a query", ["one", "two", "three"]))
    elapsed_s = time.perf_counter() - start
    give_up = time.monotonic() + 5.0
    while (counts := counters.read().since(before)).requests < 2:  # they follow an answer by a moment
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert (counts.requests, counts.inferences, counts.executions) == (2, 6, 2)
    assert 0.0 < counts.seconds < elapsed_s
    counters.close()


def test_statistics_of_a_model_that_is_not_there_are_told(server: TritonServer) -> None:
    with closing(TritonStatistics(server.grpc_target, "absent")) as counters, pytest.raises(BenchError, match="absent"):
        counters.read()
