"""`make perf-gpu` from end to end on a CPU: real weights, real Triton, real sentence-transformers, a tiny shape."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gpu import command as gpu_command
from triton_rerank_bench.gpu import measure
from triton_rerank_bench.gpu.device import CPU_NOTE
from triton_rerank_bench.served import read_model
from triton_rerank_bench.workloads import BY_NAME, passages

pytestmark = pytest.mark.timeout(600)  # three times torch in processes of their own

SHORT = ("--device", "cpu", "--shape", "tiny", "--minutes", "8", "--level-s", "0.3", "--concurrency", "2")
FORMS = ["flat", "padded"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The report of one run, as it was written after the last step, what it printed, and the folder of its models."""
    parser = argparse.ArgumentParser()
    gpu_command.add_arguments(parser)
    work = tmp_path_factory.mktemp("gpu")
    options = parser.parse_args([*SHORT, "--work", str(work), "--output", str(work / "gpu.json")])
    with (work / "printed").open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_command, "WAYS", {"2 tokenizers": {"tokenizers": 2}})
        patch.setattr(measure, "BATCH_SIZES", (32,))
        patch.setattr(measure, "BATCH_TOKENS", (16_384,))
        patch.setitem(BY_NAME, measure.WORKLOAD, lambda seed: [passages(seed), passages(seed + 1)])
        _, code = gpu_command.run(options, Console(file=file, width=150))
    assert code == 0
    return json.loads((work / "gpu.json").read_text()), (work / "printed").read_text(), work


def test_a_run_without_a_gpu_says_so_first_and_judges_no_speed(measured: tuple[dict[str, Any], str, Path]) -> None:
    document, printed, _ = measured
    assert printed.splitlines()[1].strip() == CPU_NOTE
    assert (document["device"]["kind"], document["device"]["note"]) == ("cpu", CPU_NOTE)
    assert document["device"]["driver"] is None
    assert document["matrix_flops"] > 0
    verdicts = {"to fp32's order" in target["text"]: target["passed"] for target in document["targets"]}
    assert verdicts == {True: True, False: None}


def test_what_a_cpu_does_not_have_is_left_out_and_told(measured: tuple[dict[str, Any], str, Path]) -> None:
    casts, native = measured[0]["left_out"]
    assert casts.startswith("tiny, flat, with casts: tiny cannot be exported by --precision fp32 --graph flat --fp32-r")
    assert native == (
        "tiny, flat, native backend: this Triton has no ONNX Runtime backend of its own; NVIDIA's image has"
    )


def test_each_form_tells_where_it_ran_how_right_and_how_fast(measured: tuple[dict[str, Any], str, Path]) -> None:
    document, _, work = measured
    for form, graph in zip(document["forms"], FORMS, strict=True):
        assert form["form"] == graph
        assert all(name.startswith("CPU ") and count > 0 for name, count in form["nodes"].items())
        assert form["parity"]["max_logit_difference"] < 1e-4
        assert [size["pairs"] for size in form["sizes"]] == [1, 10, 64, 256]
        assert all(size["ms"] > 0 and size["share_of_matrix_rate"] > 0 for size in form["sizes"])
        model = read_model(work / graph / "tiny" / "model_repository")
        assert (model.info.name, model.info.precision) == ("tiny", "fp32")
        inputs = {tensor.name for tensor in onnx.load(model.encoder_file).graph.input}
        assert ("widths" in inputs) == (graph == "flat")


def test_it_is_served_by_callers_and_settings_and_the_flat_form_first(
    measured: tuple[dict[str, Any], str, Path],
) -> None:
    exported, changed = measured[0]["served"]
    assert [(each["workload"], each["concurrency"]) for each in exported["levels"]] == [
        ("passages", 2), ("single", 1), ("ten", 1), ("short", 2),
    ]  # fmt: skip
    assert [each["workload"] for each in changed["levels"]] == ["passages"]
    assert (exported["way"], changed["way"]) == ("as exported", "2 tokenizers")
    for level in (*exported["levels"], *changed["levels"]):
        assert level["errors"] == {}
        assert 0 < level["latency"]["p50_ms"] <= level["latency"]["p99_ms"]
        assert level["pairs_per_s"] > 0
    assert (exported["server_mib"], measured[0]["device"]["memory_mib"]) == (None, None)
    for name in ("passages", "single", "ten", "short"):
        assert f"tiny, as exported, {name}: what callers saw" in measured[1]


def test_both_peers_stand_beside_it_in_turns(measured: tuple[dict[str, Any], str, Path]) -> None:
    standard, packed = measured[0]["beside"]
    assert standard["peer"].startswith("sentence-transformers bf16, batch ")
    assert packed["peer"].startswith("torch without padding bf16, ")
    for peer in (standard, packed):
        assert len(peer["served_pairs_per_s"]) == len(peer["peer_pairs_per_s"]) == 3
        assert all(rate > 0 for rate in (*peer["served_pairs_per_s"], *peer["peer_pairs_per_s"], peer["ratio"]["min"]))
        assert peer["served_tau"] > 0.999  # fp32 on both sides
        assert peer["peer_tau"] > 0.5


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
