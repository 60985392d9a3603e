"""Tuned settings stay: the manifest holds them, a new version keeps them, and the check accepts them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.folders import fingerprint
from support.tiny_models import BOUNDED, write_fine_tuned

from triton_rerank.contract import MANIFEST_FILE
from triton_rerank.repository import read_artefacts, read_config
from triton_rerank_export.cli import main
from triton_rerank_export.errors import ExportError
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository.check import check_repository
from triton_rerank_export.repository.manifest import read_manifest
from triton_rerank_export.repository.settings import SETTINGS, Settings
from triton_rerank_export.repository.store import activate, active_version, installed_versions
from triton_rerank_export.repository.triton_config import ServedModel

NAME = "tiny-bert"
BOTH = [NAME, "tiny-xlmr"]
TUNED = ["--instances=2", "--threads=1", "--length-ladder=48,96", "--max-batch-size=8", "--queue-delay-us=500"]
A_MODEL = ServedModel(NAME, "identity", 128, "fp32", "here", token_type_ids=True, pad_token_id=0)


@pytest.fixture
def copy(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repository"))


def set_up(target: Path, *arguments: str) -> int:
    return main(["set", "--model", NAME, "--model-repository", str(target), *arguments])


def export(checkpoint: Path, target: Path, **options: Any) -> None:
    export_model(str(checkpoint), target, ExportOptions(precision="fp32", **options), on_step=lambda _: None)


def settings(target: Path) -> dict[str, Any]:
    """Of the active version, by its manifest."""
    return Settings.of(installed_versions(target, NAME)[active_version(target, NAME)].model).given


def test_settings_become_a_version_of_the_same_files_and_the_check_accepts_them(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set_up(copy, *TUNED, "--tokenizers=3", "--max-queue-size=0", "--queue-timeout-us=0") == 0
    *changed, active = capsys.readouterr().out.splitlines()
    assert changed == [
        "instances 1 → 2",
        "threads 0 → 1",
        "tokenizers 1 → 3",
        "length_ladder default → 48,96",
        "max_batch_size 256 → 8",
        "queue_delay_us 0 → 500",
        "max_queue_size 128 → 0",
        "queue_timeout_us 10000000 → 0",
    ]
    assert active == f"version 2 of {NAME} (fp32) is active in {copy}"
    assert check_repository(copy) == BOTH
    ensemble, encoder, tokenizer = (read_config(copy, NAME + suffix) for suffix in ("", "-encoder", "-tokenizer"))
    assert {config.max_batch_size for config in (ensemble, encoder, tokenizer)} == {8}
    assert [encoder.instance_group[0].count, tokenizer.instance_group[0].count] == [2, 3]
    assert encoder.parameters["intra_op_thread_count"].string_value == "1"
    assert encoder.dynamic_batching.max_queue_delay_microseconds == 500
    assert not tokenizer.dynamic_batching.HasField("default_queue_policy")
    assert read_artefacts(copy, NAME).info.length_ladder == (48, 96, 128)
    graphs = [copy / f"{NAME}-encoder" / version / "model.onnx" for version in "12"]
    assert graphs[0].samefile(graphs[1])


def test_going_back_brings_the_old_settings_with_the_old_version(copy: Path) -> None:
    before = settings(copy)
    set_up(copy, *TUNED)
    tuned = settings(copy)
    assert activate(copy, NAME, 1) == 1
    assert settings(copy) == before
    assert read_config(copy, NAME).max_batch_size == read_config(copy, f"{NAME}-encoder").max_batch_size == 256
    assert check_repository(copy) == BOTH
    activate(copy, NAME)
    assert settings(copy) == tuned
    assert check_repository(copy) == BOTH


def test_a_new_version_keeps_them_unless_told_otherwise(copy: Path, fine_tuned: Path, tmp_path: Path) -> None:
    set_up(copy, *TUNED)
    tuned = settings(copy)
    export(fine_tuned, copy)
    assert active_version(copy, NAME) == 3
    assert settings(copy) == tuned
    export(write_fine_tuned(fine_tuned, tmp_path / "third" / NAME), copy, threads=0, max_batch_size=16)
    assert settings(copy) == {**tuned, "threads": 0, "max_batch_size": 16}
    assert check_repository(copy) == BOTH


def test_a_replacement_begins_with_the_default_ones(copy: Path, fine_tuned: Path) -> None:
    set_up(copy, *TUNED)
    export(fine_tuned, copy, replace=True, **BOUNDED)
    assert settings(copy) == Settings.of(A_MODEL).given


def test_the_same_settings_change_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(copy, *TUNED)
    before = fingerprint(copy)
    capsys.readouterr()
    assert set_up(copy, *TUNED[:2]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert fingerprint(copy) == before


@pytest.fixture
def other(tiny_repository: Path, tmp_path: Path) -> Path:
    """A repository whose model has another precision, as far as its configs go."""
    folder = Path(shutil.copytree(tiny_repository, tmp_path / "other"))
    path = folder / NAME / "1" / MANIFEST_FILE
    path.write_text(path.read_text(encoding="utf-8").replace('"precision": "fp32"', '"precision": "bf16"'))
    activate(folder, NAME)
    return folder


def test_a_model_of_another_repository_takes_the_place_of_the_one_that_is_there(
    copy: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, theirs = fingerprint(copy), fingerprint(other)
    assert set_up(copy, "--from", str(other), "--instances=2") == 1
    assert "precision 'fp32' → 'bf16'" in capsys.readouterr().err
    assert fingerprint(copy) == before
    for _ in range(2):  # the second time it is there already
        assert set_up(copy, "--from", str(other), "--instances=2", "--replace") == 0
        assert read_artefacts(copy, NAME).info.precision == "bf16"
        assert settings(copy)["instances"] == 2
        assert check_repository(copy) == BOTH
    assert "nothing was changed" in capsys.readouterr().out
    assert fingerprint(other) == theirs
    assert not [path for path in copy.parent.iterdir() if path.name.startswith(".")]


def test_a_model_of_another_repository_is_put_where_none_is(other: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    assert set_up(target, "--from", str(other)) == 0
    assert check_repository(target) == [NAME]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "is served with instances 1, threads 0, tokenizers 1, length_ladder default, micro_batch_tokens 0"),
        (["--instances=0"], "--instances is 0: it must be from 1 to 64"),
        (["--length-ladder=64,32"], "--length-ladder is 64,32: it must be numbers above 0, each above the last"),
        (["--length-ladder=64,256"], "no pair of tiny-bert has more than 128 tokens"),
        (["--micro-batch-tokens=3"], "--micro-batch-tokens is 3: it must be 0, or 64 and more"),
        (["--cuda-graph-shapes=8by8"], "--cuda-graph-shapes is 8by8: it must be rows x width"),
        (["--from=/absent"], "/absent: no model 'tiny-bert' with a manifest.json"),
        (["--keep-versions=1", "--instances=2"], "--keep-versions is 1: it must be from 2 to 100"),
    ],
)
def test_what_cannot_be_set_is_told_in_one_line_and_nothing_is_changed(
    copy: Path, arguments: list[str], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(copy.parent)
    assert set_up(copy, *arguments) == 1
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1
    assert fingerprint(copy.parent) == before


@pytest.mark.parametrize(
    ("model", "given", "fragment"),
    [
        (replace(A_MODEL, engine="openvino"), {"micro_batch_tokens": 512}, "tiny-bert is served by openvino"),
        (replace(A_MODEL, native=True), {"cuda_graph_shapes": "1x32"}, "tiny-bert is served by Triton itself"),
        (replace(A_MODEL, graph="flat"), {"cuda_graph_shapes": "1x32"}, "a flat graph's tensors have no such shapes"),
        (replace(A_MODEL, engine="tensorrt"), {"threads": 2}, "tensorrt computes on a GPU and has none"),
        (
            replace(A_MODEL, precision="int8"),
            {"cuda_graph_shapes": "1x32"},
            "int8 is computed on CPUs, which have none",
        ),
        (replace(A_MODEL, native=True), {"scheduling": "continuous"}, "only our encoder does that"),
    ],
)
def test_what_an_engine_does_not_read_is_not_written(model: ServedModel, given: Any, fragment: str) -> None:
    with pytest.raises(ExportError, match=fragment):
        Settings(**given).applied(model)


def test_a_native_backend_gets_no_more_pairs_than_it_computes_at_once() -> None:
    native = replace(A_MODEL, native=True, max_length=512)
    assert Settings(max_batch_size=1000).applied(native).max_batch_size == 128


def test_a_damaged_version_is_not_taken_for_a_new_one(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / f"{NAME}-encoder" / "1" / "model.onnx").write_bytes(b"damaged")
    assert set_up(copy, "--instances=2") == 1
    assert "version 1 of tiny-bert is not what its manifest says" in capsys.readouterr().err
    assert active_version(copy, NAME) == 1


def test_lengths_of_a_tensorrt_plan_are_those_that_it_was_built_for(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / NAME / "1" / MANIFEST_FILE
    path.write_text(path.read_text(encoding="utf-8").replace('"onnxruntime",', '"tensorrt",', 1))
    assert set_up(copy, "--length-ladder=64") == 1
    assert "its TensorRT plan was built for its length_ladder; export it again" in capsys.readouterr().err


def test_a_manifest_from_before_continuous_scheduling_means_executions(copy: Path) -> None:
    path = copy / NAME / "1" / MANIFEST_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["model"]["scheduling"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_manifest(path).model.scheduling == "executions"


def test_scheduling_is_kept_and_can_be_set(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set_up(copy, "--scheduling=executions") == 0
    assert capsys.readouterr().out.splitlines()[0] == "scheduling continuous → executions"
    assert "scheduling" not in read_config(copy, f"{NAME}-encoder").parameters
    assert set_up(copy, "--instances=2") == 0
    assert settings(copy)["scheduling"] == "executions"
    assert main(["list", "--model-repository", str(copy)]) == 0
    assert "scheduling executions" in capsys.readouterr().out
    assert check_repository(copy) == BOTH


def test_a_manifest_from_before_there_were_settings_has_the_defaults(copy: Path) -> None:
    path = copy / NAME / "1" / MANIFEST_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {"max_batch_size", "queue_delay_us", "max_queue_size", "queue_timeout_us", "scheduling"}
    for name in set(SETTINGS) - kept:
        del content["model"][name]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Settings.of(read_manifest(path).model).given == Settings.of(A_MODEL).given
    assert check_repository(copy) == BOTH
