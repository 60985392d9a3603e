"""`make perf-gpu` from end to end on a CPU: real weights, real Triton, real sentence-transformers, a tiny shape."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from triton_rerank_bench import gpu_command, report
from triton_rerank_bench.contestants import SERVED
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gpu_device import CPU_NOTE
from triton_rerank_bench.gpu_peer import BEST, DEFAULT

SHORT = (
    "--device",
    "cpu",
    "--shape",
    "tiny",
    "--rounds",
    "1",
    "--level-s",
    "0.3",
    "--concurrency",
    "2",
    "--batch-size",
    "32",
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, int]:
    """The report of one run, what it printed, and its exit code."""
    parser = argparse.ArgumentParser()
    gpu_command.add_arguments(parser)
    work = tmp_path_factory.mktemp("gpu")
    options = parser.parse_args([*SHORT, "--workload", "passages", "--workload", "single", "--work", str(work)])
    with (work / "printed").open("w") as file:
        document, code = gpu_command.run(options, Console(file=file, width=150))
    return json.loads(report.compact(document)), (work / "printed").read_text(), code


def test_a_run_without_a_gpu_says_so_first(measured: tuple[dict[str, Any], str, int]) -> None:
    document, printed, code = measured
    assert printed.splitlines()[1] == CPU_NOTE
    assert (document["device"]["kind"], document["device"]["note"]) == ("cpu", CPU_NOTE)
    assert document["device"]["driver"] is None
    (model,) = document["models"]
    assert model["memory"] == {"server_mib": None, "peer_mib": None}
    assert [target["passed"] for target in model["targets"]] == [True, None]
    assert code == 0


def test_every_side_is_measured_on_every_workload(measured: tuple[dict[str, Any], str, int]) -> None:
    (model,) = measured[0]["models"]
    assert (model["shape"], model["weights"], model["precision"]) == ("tiny", "random", "fp32")
    for workload, pairs in zip(model["workloads"], (100, 1), strict=True):
        speed = workload["speed"]
        assert speed["tokens"]["pairs"] == pairs
        assert {timing["contestant"] for timing in speed["timings"]} == {SERVED, DEFAULT, BEST}
        assert all(timing["pairs_per_s"] > 0 and timing["tokens_per_s"] > 0 for timing in speed["timings"])
        (level,) = workload["levels"]
        assert (level["concurrency"], level["errors"]) == (2, {})
        assert 0 < level["latency"]["p50_ms"] <= level["latency"]["p99_ms"]
        assert level["pairs_per_s"] > 0
        assert all(rate > 0 for rate in workload["capacity"]["peer_pairs_per_s"])
        assert len(workload["capacity"]["served_pairs_per_s"]) == 3
        assert workload["bulk_batch_sizes"][0]["pairs_per_s"] > 0


def test_orders_are_held_against_fp32(measured: tuple[dict[str, Any], str, int]) -> None:
    (model,) = measured[0]["models"]
    passages, single = model["workloads"]
    taus = {agreement["second"]: agreement["kendall_tau"] for agreement in passages["to_reference"]}
    assert taus[SERVED] > 0.999  # fp32 on both sides
    assert taus[DEFAULT] < 1.0  # bf16
    assert single["to_reference"] == []


def test_the_setting_is_told_as_a_change_of_the_configs(measured: tuple[dict[str, Any], str, int]) -> None:
    (model,) = measured[0]["models"]
    assert len(model["tried"]) == 2
    assert all(tried["pairs_per_s"] > 0 for tried in model["tried"])
    assert "+  kind: KIND_CPU" in model["config_change"]


def test_a_gpu_that_is_not_there_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    parser = argparse.ArgumentParser()
    gpu_command.add_arguments(parser)
    options = parser.parse_args(["--work", str(tmp_path / "work")])
    with pytest.raises(BenchError, match="nvidia-smi is not on PATH"):
        gpu_command.run(options, Console(quiet=True))
    assert not (tmp_path / "work").exists()
