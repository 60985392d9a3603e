"""The stand-in server that answers at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.experiments.stand_in import stand_in
from triton_rerank import RerankClient
from triton_rerank_bench.errors import BenchError


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
    monkeypatch.setattr("bench.experiments.stand_in.sys.executable", "/bin/false")
    with pytest.raises(BenchError, match="stand-in server did not start"), stand_in(tmp_path):
        pass


def test_stand_in_ends_with_the_process_that_started_it(tiny_repository: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from bench.experiments.stand_in import stand_in\n"
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
