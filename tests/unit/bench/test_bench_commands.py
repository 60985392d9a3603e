"""The commands on a tiny model, with a real Triton, client and sentence-transformers; and ways to call them wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from triton_rerank import ConfigurationError
from triton_rerank_bench.cli import main
from triton_rerank_bench.compare.command import Measured, judge_speed
from triton_rerank_bench.compare.race import Outcome, Ratio, Row, timing
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import PeakMemory
from triton_rerank_bench.served import name_repositories, read_model
from triton_rerank_bench.workloads import TokenStatistics
from triton_rerank_export.repository.store import activate


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = capsys.readouterr().out.splitlines()
    document: dict[str, Any] = json.loads(lines[-1])
    assert len(lines) > 1  # tables come first
    return document


def test_speed_times_all_contestants_and_they_agree(
    tiny_repository: Path, checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    code = main(
        [
            *("speed", "--model-repository", str(tiny_repository), "--model", "tiny-bert", "--rounds", "1"),
            *("--checkpoint", str(checkpoints["tiny-bert"]), "--output", str(output)),
        ]
    )
    document = last_line(capsys)
    assert code == 0
    assert document == json.loads(output.read_text(encoding="utf-8"))
    passages, single = document["workloads"]
    served, in_process, default, best = passages["rows"]
    assert (served["name"], in_process["name"]) == ("served", "in process")
    assert (default["kind"], best["kind"]) == ("default", "best")
    (tried,) = passages["tried"].values()
    assert list(tried) == ["batch 32", "batch 8"]
    assert (default["setting"], best["setting"] in tried) == ("batch 32", True)
    assert min(row["kendall_tau"] for row in passages["rows"]) > 0.99
    timings = [row["timing"] for row in single["rows"]]
    assert all(timing["min_s"] <= timing["median_s"] <= timing["max_s"] for timing in timings)
    assert (passages["tokens"]["pairs"], single["tokens"]["pairs"]) == (100, 1)
    assert len(document["server_memory"]["processes"]) == 5  # tritonserver, and two stubs a model
    assert document["server_memory"]["pss_bytes"] > 10**7
    targets = document["targets"]
    assert [target["text"].partition(":")[0] for target in targets] == [
        "served / in process, 100 pairs",
        "sentence-transformers torch fp32 / served, 100 pairs",
        "served − in process, one pair, ms",
        "peak server memory, MB",
    ]
    assert [target["passed"] for target in targets][1::2] == [None, True]  # no int8 here; memory is small


def test_missing_checkpoint_ends_with_2(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["speed", "--model-repository", str(tiny_repository), "--model", "tiny-bert"]
    assert main([*command, "--checkpoint", str(tmp_path)]) == 2
    assert "looked for config.json" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_must_be_a_whole_number_from_one(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["speed", "--model-repository", ".", "--checkpoint", ".", "--rounds", rounds])
    assert "whole number from 1" in capsys.readouterr().err


def test_repository_may_have_a_name_or_take_its_folders(tmp_path: Path) -> None:
    assert name_repositories([f"int8={tmp_path}", str(tmp_path)]) == {"int8": tmp_path, tmp_path.name: tmp_path}


def test_two_repositories_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="must differ"):
        name_repositories([str(tmp_path), str(tmp_path)])


def test_missing_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"looked for the folder .*absent"):
        name_repositories([f"int8={tmp_path / 'absent'}"])


def test_model_is_read_from_its_three_configs(tiny_repository: Path) -> None:
    model = read_model(tiny_repository, "tiny-bert")
    assert (model.info.name, model.info.precision) == ("tiny-bert", "fp32")
    assert model.info.length_ladder[-1] == model.info.max_length
    assert model.tokenizer_file.is_file()
    assert model.encoder_file.is_file()


def test_the_active_version_is_measured_not_the_first(two_versions: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(two_versions, tmp_path / "copy")
    for version in (2, 1):
        activate(copy, "tiny-bert", version)
        model = read_model(copy, "tiny-bert")
        files = [model.tokenizer_file.parent.name, model.encoder_file.parent.name]
        assert [model.info.version, *files] == [str(version)] * 3
    for name in ("tiny-bert", "tiny-bert-tokenizer", "tiny-bert-encoder"):  # as a third export leaves it
        activate(copy, "tiny-bert", 2)
        shutil.rmtree(copy / name / "1")
    assert read_model(copy, "tiny-bert").encoder_file.is_file()


def test_repository_with_several_models_asks_which(tiny_repository: Path) -> None:
    with pytest.raises(BenchError, match=r"holds tiny-bert, tiny-xlmr; say which by --model"):
        read_model(tiny_repository)


def test_repository_whose_weights_are_not_built_is_told(tiny_repository: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_repository, tmp_path / "copy")
    for weights in copy.glob("*/1/model.onnx"):
        weights.unlink()
    with pytest.raises(BenchError, match=r"looked for a built model .* `make export`"):
        read_model(copy)
    with pytest.raises(BenchError, match=r"model.onnx: looked for this file"):
        read_model(copy, "tiny-bert")


def test_unknown_model_is_told(tiny_repository: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent/config.pbtxt: no such file; .* are tiny-bert, tiny-xlmr"):
        read_model(tiny_repository, "absent")


def figures(pairs: int, overhead: float, added_ms: float, speedup: float) -> Outcome:
    tokens = TokenStatistics(pairs, 9000, 90.0, 88.0, 200, 1.15)
    over = Ratio("served", "in process", overhead, overhead, overhead)
    slower = Ratio("torch", "served", speedup, speedup, speedup)
    peer = Row("torch", "default", "batch 32", 1.0, timing("torch", [1.0], tokens), slower)
    return Outcome("passages", tokens, 1, [peer], over, added_ms)


@pytest.mark.parametrize(
    ("overhead", "single_ms", "speedup", "memory", "precision", "passed"),
    [
        (1.03, 1.5, 2.0, 10**9, "int8", [True, True, True, True]),
        (1.04, 1.6, 1.99, 10**9 + 1, "int8", [False, False, False, False]),
        (1.0, -0.1, 1.5, 0, "fp32", [True, None, True, True]),
    ],
)
def test_targets_hold_at_their_bounds(
    overhead: float, single_ms: float, speedup: float, memory: int, precision: str, passed: list[bool | None]
) -> None:
    files = cast(Any, SimpleNamespace(info=SimpleNamespace(precision=precision)))
    workloads = [figures(100, overhead, 0.0, speedup), figures(1, 1.0, single_ms, 1.0)]
    targets = judge_speed(Measured(files, 1, workloads=workloads, memory=PeakMemory(memory, samples=1)))
    assert [target["passed"] for target in targets] == passed


def test_what_was_not_measured_is_not_judged() -> None:
    files = cast(Any, SimpleNamespace(info=SimpleNamespace(precision="int8")))
    assert judge_speed(Measured(files, 1)) == []
    without = replace(figures(100, 1.0, 0.0, 2.0), rows=[], not_measured={"torch": "died"})
    assert len(judge_speed(Measured(files, 1, workloads=[without]))) == 1


REPOSITORY = ["--model-repository", "absent"]  # the report's place is looked at first


@pytest.mark.parametrize(
    "command",
    [
        ["speed", *REPOSITORY, "--checkpoint", "absent"],
        ["load", *REPOSITORY],
        ["gpu", "--device", "cpu"],
    ],
    ids=lambda command: str(command[0]),
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for output in (tmp_path / "absent" / "report.json", folder, Path("/proc/report.json")):
        assert main([*command, "--output", str(output)]) == 2
        assert capsys.readouterr().err == (
            f"triton-rerank-bench: --output {output}: cannot be written; give a file in a folder that is there\n"
        )


def test_a_report_of_before_stays_when_nothing_can_be_measured(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    output.write_text("before")
    assert main(["load", *REPOSITORY, "--output", str(output)]) == 2
    assert output.read_text() == "before"
