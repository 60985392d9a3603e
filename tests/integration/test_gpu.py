"""`make perf-gpu` from end to end on a CPU: real weights, real Triton, real sentence-transformers, a tiny shape."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console
from support.tritons import NAME, only_bert

from triton_rerank_bench import report
from triton_rerank_bench.compare.contestants import SERVED
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gpu import command as gpu_command
from triton_rerank_bench.gpu.device import CPU_NOTE
from triton_rerank_bench.gpu.models import Prepared
from triton_rerank_bench.served import read_model

pytestmark = pytest.mark.timeout(600)  # three times torch in processes of their own

SHORT = (
    *("--device", "cpu", "--shape", "tiny", "--minutes", "0.25", "--rounds", "1", "--level-s", "0.3"),
    *("--concurrency", "2", "--batch-size", "32", "--workload", "short", "--workload", "single"),
)


def test_the_first_minutes_export_each_form_and_tell_where_it_ran_how_right_and_how_fast(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    gpu_command.add_arguments(parser)
    arguments = ["--device", "cpu", "--shape", "tiny", "--first", "--work", str(tmp_path), "--output"]
    document, code = gpu_command.run(parser.parse_args([*arguments, str(tmp_path / "first.json")]), Console(quiet=True))
    assert (code, document["left_out"]) == (0, [])
    for form, graph in zip(json.loads((tmp_path / "first.json").read_text())["forms"], ("padded", "flat"), strict=True):
        assert form["graph"] == graph
        assert all(name.startswith("CPU ") and count > 0 for name, count in form["nodes"].items())
        assert form["parity"]["max_logit_difference"] < 1e-4
        assert [size["pairs"] for size in form["sizes"]] == [1, 10, 64, 256]
        assert all(size["ms"] > 0 and size["share_of_matrix_rate"] > 0 for size in form["sizes"])
        model = read_model(tmp_path / graph / "tiny" / "model_repository")
        assert (model.info.name, model.info.precision) == ("tiny", "fp32")
        inputs = {tensor.name for tensor in onnx.load(model.encoder_file).graph.input}
        assert ("widths" in inputs) == (graph == "flat")


@pytest.fixture(scope="module")
def measured(
    tiny_repository: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, int]:
    """The report of one run on a model that is exported already, what it printed, and its exit code."""
    parser = argparse.ArgumentParser()
    gpu_command.add_arguments(parser)
    work = tmp_path_factory.mktemp("gpu")
    repository = only_bert(tiny_repository, work / "model_repository")
    prepared = Prepared(NAME, "random", checkpoints[NAME], repository)
    options = parser.parse_args([*SHORT, "--work", str(work)])
    with (work / "printed").open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_command, "prepare", lambda *_, **__: prepared)
        document, code = gpu_command.run(options, Console(file=file, width=150))
    return json.loads(report.compact(document)), (work / "printed").read_text(), code


def test_a_run_without_a_gpu_says_so_first(measured: tuple[dict[str, Any], str, int]) -> None:
    document, printed, code = measured
    assert printed.splitlines()[1].strip() == CPU_NOTE
    assert (document["device"]["kind"], document["device"]["note"]) == ("cpu", CPU_NOTE)
    assert document["device"]["driver"] is None
    (model,) = document["models"]
    assert (model["server_mib"], model["peer_mib"]) == (None, None)
    assert [target["passed"] for target in model["targets"]] == [True]  # of order; speed is no target on a CPU
    assert code == 0


def test_every_side_is_measured_on_every_workload(measured: tuple[dict[str, Any], str, int]) -> None:
    (model,) = measured[0]["models"]
    assert (model["shape"], model["weights"], model["precision"]) == (NAME, "random", "fp32")
    for workload, pairs in zip(model["workloads"], (10, 1), strict=True):
        lists = workload["lists"]
        assert lists["tokens"]["pairs"] == pairs
        assert [timing["contestant"] for timing in lists["ours"]] == [SERVED]
        (peer,) = lists["peers"]
        for at in (peer["default"], peer["best"]):
            assert at["timing"]["pairs_per_s"] > 0
            assert at["ratio"]["median"] > 0
        (level,) = workload["levels"]
        assert (level["concurrency"], level["errors"]) == (2, {})
        assert 0 < level["latency"]["p50_ms"] <= level["latency"]["p99_ms"]
        assert level["pairs_per_s"] > 0
        most = workload["capacity"]
        assert all(rate > 0 for rate in most["peer_pairs_per_s"])
        assert len(most["served_pairs_per_s"]) == 3


def test_orders_are_held_against_fp32(measured: tuple[dict[str, Any], str, int]) -> None:
    short = measured[0]["models"][0]["workloads"][0]["lists"]
    assert short["our_kendall_tau"] > 0.999  # fp32 on both sides
    assert short["peers"][0]["default"]["kendall_tau"] > 0.5  # bf16


def test_the_setting_is_searched_and_told_as_a_change_of_the_configs(measured: tuple[dict[str, Any], str, int]) -> None:
    document, printed, _ = measured
    (model,) = document["models"]
    assert model["tuning"]["sweeps"][0]["levels"][0]["pairs_per_s"] > 0
    assert model["answer"]["setting"]["repository"] == NAME
    assert "+  kind: KIND_CPU" in model["config_change"]
    assert f"served with {NAME}" in printed


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
