"""Versions of a model side by side: a second export, back to the first, and what may not share a name."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.exports import settled
from support.folders import fingerprint
from support.tiny_models import BOUNDED, write_fine_tuned

from triton_rerank.contract import ENCODER_BACKEND, MANIFEST_FILE
from triton_rerank.repository import read_config
from triton_rerank_export.cli import main
from triton_rerank_export.errors import ExportError
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import ExportResult, export_model
from triton_rerank_export.repository import replacement, staging, store
from triton_rerank_export.repository.check import check_repository
from triton_rerank_export.repository.store import activate, active_version, installed_versions

NAME = "tiny-bert"
STEPS = ("tiny-bert-tokenizer", "tiny-bert-encoder")


@pytest.fixture
def copy(two_versions: Path, tmp_path: Path) -> Path:
    return settled(Path(shutil.copytree(two_versions, tmp_path / "model_repository")), NAME)


def export(checkpoint: Path, target: Path, **options: object) -> ExportResult:
    chosen = ExportOptions(**{"precision": "fp32", **BOUNDED, **options})
    return export_model(str(checkpoint), target, chosen, on_step=lambda _: None)


def served(target: Path) -> tuple[int, list[int]]:
    """Version that the ensemble serves, and the versions that the encoder holds ready."""
    ensemble = read_config(target, NAME)
    steps = {step.model_version for step in ensemble.ensemble_scheduling.step}
    assert steps == {active_version(target, NAME)}
    ready = [list(read_config(target, step).version_policy.specific.versions) for step in STEPS]
    assert ready[0] == ready[1]
    return active_version(target, NAME), ready[0]


def test_a_second_export_makes_version_2_beside_version_1(two_versions: Path) -> None:
    assert served(two_versions) == (2, [1, 2])
    assert check_repository(two_versions) == [NAME, "tiny-xlmr"]
    graphs = [(two_versions / "tiny-bert-encoder" / version / "model.onnx").read_bytes() for version in "12"]
    assert graphs[0] != graphs[1]


def test_activate_goes_back_and_forth_and_touches_configs_only(copy: Path) -> None:
    before = fingerprint(copy)
    assert activate(copy, NAME, 1) == 1
    assert served(copy) == (1, [1, 2])
    assert check_repository(copy) == [NAME, "tiny-xlmr"]
    changed = {name for name, digest in fingerprint(copy).items() if before[name] != digest}
    assert changed == {"tiny-bert/config.pbtxt"}
    assert activate(copy, NAME) == 2
    assert fingerprint(copy) == before


def test_the_very_same_export_changes_nothing(copy: Path, fine_tuned: Path) -> None:
    before = fingerprint(copy)
    result = export(fine_tuned, copy)
    assert not result.changed
    assert result.manifest.model.version == 2
    assert fingerprint(copy) == before


def test_the_same_export_over_damaged_files_makes_a_new_version(copy: Path, fine_tuned: Path) -> None:
    (copy / "tiny-bert-encoder" / "2" / "model.onnx").write_bytes(b"damaged")
    assert export(fine_tuned, copy).changed
    assert served(copy)[0] == 3


def test_a_third_export_keeps_the_active_version_and_drops_the_other(
    copy: Path, fine_tuned: Path, tmp_path: Path
) -> None:
    activate(copy, NAME, 1)
    settled(copy, NAME)
    third = write_fine_tuned(fine_tuned, tmp_path / "third" / NAME)
    result = export(third, copy)
    assert (result.versions, result.left) == ([1, 3], ("version 2 was removed (--keep-versions)",))
    assert served(copy) == (3, [1, 3])
    for folder in (NAME, *STEPS):
        assert sorted(path.name for path in (copy / folder).glob("[0-9]*")) == ["1", "3"]
    assert check_repository(copy) == [NAME, "tiny-xlmr"]


def test_what_a_server_may_serve_still_stays_until_a_later_change(copy: Path, fine_tuned: Path, tmp_path: Path) -> None:
    """A server that has not seen the last change serves the version before it, which the next would have removed."""
    third, fourth, fifth = (write_fine_tuned(fine_tuned, tmp_path / f"{n}" / NAME, shift=n) for n in (1, 2, 3))
    activate(copy, NAME, 1)
    result = export(third, copy)
    assert result.versions == [1, 2, 3]
    assert [sentence.split(": ")[0] for sentence in result.left] == ["version 2 stays"]
    assert served(copy) == (3, [1, 2, 3])
    (copy / "tiny-bert-encoder" / "9").mkdir()
    assert export(fourth, copy).versions == [1, 2, 3, 10]
    assert not (copy / "tiny-bert-encoder" / "9").exists()  # no server ever served that
    assert check_repository(copy) == [NAME, "tiny-xlmr"]
    result = export(fifth, settled(copy, NAME))
    assert (result.versions, len(result.left)) == ([10, 11], 3)
    assert served(copy) == (11, [10, 11])


def as_before_our_backend_had_a_name(target: Path) -> None:
    """What an older export left: a manifest that does not say `native`, and configs for Triton's own backends."""
    for file in sorted((target / NAME).glob(f"[0-9]*/{MANIFEST_FILE}")):
        content = json.loads(file.read_text(encoding="utf-8"))
        del content["model"]["native"]
        file.write_text(json.dumps(content), encoding="utf-8")
    activate(target, NAME)
    settled(target, NAME)


def test_a_repository_from_before_our_backend_had_a_name_is_in_order_and_takes_a_new_version(
    copy: Path, fine_tuned: Path, tmp_path: Path
) -> None:
    as_before_our_backend_had_a_name(copy)
    encoder = read_config(copy, "tiny-bert-encoder")
    assert encoder.backend == "onnxruntime"
    assert not encoder.parameters
    assert not any(tensor.allow_ragged_batch for tensor in encoder.input)
    assert check_repository(copy) == [NAME, "tiny-xlmr"]
    assert export(write_fine_tuned(fine_tuned, tmp_path / "third" / NAME), copy).versions == [2, 3]
    assert read_config(copy, "tiny-bert-encoder").backend == ENCODER_BACKEND
    assert check_repository(copy) == [NAME, "tiny-xlmr"]
    activate(copy, NAME, 2)
    assert read_config(copy, "tiny-bert-encoder") == encoder_with_versions(encoder, [2, 3])


def encoder_with_versions(encoder: Any, versions: list[int]) -> Any:
    encoder.version_policy.specific.versions[:] = versions
    return encoder


def test_replace_takes_the_place_of_all_versions_and_uses_no_number_again(copy: Path, fine_tuned: Path) -> None:
    assert export(fine_tuned, copy, replace=True).versions == [3]
    assert served(copy) == (3, [3])
    assert export(fine_tuned, copy, replace=True).versions == [4]
    assert check_repository(copy) == [NAME, "tiny-xlmr"]


def test_what_a_killed_export_left_is_not_served_and_goes_with_the_next(
    copy: Path, fine_tuned: Path, tmp_path: Path
) -> None:
    (copy / "tiny-bert-encoder" / "3").mkdir()
    third = write_fine_tuned(fine_tuned, tmp_path / "third" / NAME)
    assert export(third, copy).versions == [2, 4]
    assert not (copy / "tiny-bert-encoder" / "3").exists()


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"max_length": 64}, "max_length 128 → 64"),
        ({"special_tokens_in_text": "special"}, "special_tokens_in_text 'text' → 'special'"),
        ({"warmup": "none"}, "warmup 'light' → 'none'"),
        ({"response_cache": True}, "response_cache False → True"),
    ],
)
def test_versions_share_their_settings(copy: Path, fine_tuned: Path, options: dict[str, object], fragment: str) -> None:
    before = fingerprint(copy)
    with pytest.raises(ExportError) as refused:
        export(fine_tuned, copy, **options)
    assert fragment in str(refused.value)
    assert "--replace" in str(refused.value)
    assert fingerprint(copy) == before


def test_versions_share_the_activation_which_clients_read_once(copy: Path) -> None:
    model = installed_versions(copy, NAME)[2].model
    store.check_compatible(copy, dataclasses.replace(model, version=3, source="another", revision="0" * 40))
    with pytest.raises(ExportError, match="activation 'sigmoid' → 'identity'"):
        store.check_compatible(copy, dataclasses.replace(model, version=3, activation="identity"))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--model", NAME, "--version", "7"], "tiny-bert has the versions [1, 2], not 7"),
        (["--model", "nobody"], "no model 'nobody' with a manifest.json"),
        (["--model", NAME, "--target", "127.0.0.1:1"], "127.0.0.1:1: tiny-bert was not loaded"),
    ],
)
def test_activate_refuses_in_one_line(
    copy: Path, arguments: list[str], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["activate", "--model-repository", str(copy), *arguments]) == 1
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1


def test_list_shows_each_version_and_which_is_active(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "lost+found").mkdir()
    assert main(["list", "--model-repository", str(copy)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "model",
        "version",
        "active",
        "precision",
        "engine",
        "MB",
        "licence",
        "source",
        "settings",
    ]
    assert [line.split()[:2] for line in lines] == [[NAME, "1"], [NAME, "2"], ["tiny-xlmr", "1"]]
    assert ["yes" in line.split() for line in lines] == [False, True, True]
    assert all("fp32" in line and "unknown" in line and "local folder" in line for line in lines)
    assert main(["activate", "--model-repository", str(copy), "--model", NAME, "--version", "1"]) == 0
    capsys.readouterr()
    assert main(["list", "--model-repository", str(copy)]) == 0
    assert ["yes" in line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [True, False, True]


def test_list_shows_the_form_that_was_chosen_at_export(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "tiny-xlmr" / "1" / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["model"] |= {"graph": "flat", "native": True, "threads": 3}
    path.write_text(json.dumps(manifest))
    assert main(["list", "--model-repository", str(copy)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  graph flat, native, threads 3")


def test_list_shows_the_others_beside_a_model_that_cannot_be_read(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / NAME / "1" / MANIFEST_FILE).write_text("{", encoding="utf-8")
    assert main(["list", "--model-repository", str(copy)]) == 1
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["model", "tiny-xlmr"]
    assert said.err.count("\n") == 1
    assert f"{NAME}/1/{MANIFEST_FILE}: not a manifest" in said.err


@pytest.mark.parametrize("folder", ["empty", "not there"])
def test_list_says_where_nothing_is(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["list", "--model-repository", str(tmp_path / folder)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(tmp_path / folder) in said.err


def test_the_manifest_says_where_each_version_came_from(two_versions: Path) -> None:
    versions = installed_versions(two_versions, NAME)
    assert [manifest.model.version for manifest in versions.values()] == [1, 2]
    for manifest in versions.values():
        assert manifest.model.source == "local folder tiny-bert"
        assert manifest.parity["pairs"] > 0
        assert 0 < manifest.parity["max_logit_difference"] < 1e-4
        assert len(manifest.files) == 2
        assert {"torch", "onnxruntime", "tokenizers"} <= set(manifest.tools)


def test_two_exports_at_once_are_two_versions(fine_tuned: Path, tmp_path: Path) -> None:
    """Each has made its files before the other one installs, and neither sees the other's scratch folder as left."""
    one, other = (write_fine_tuned(fine_tuned, tmp_path / f"{number}" / NAME, shift=number) for number in (1, 2))
    target, results = tmp_path / "new" / "model_repository", []

    def on_step(step: str) -> None:
        if step == "installing":
            results.append(export(other, target))

    options = ExportOptions(precision="fp32", **BOUNDED)
    results.append(export_model(str(one), target, options, on_step=on_step))
    assert [result.manifest.model.version for result in results] == [1, 2]
    assert results[1].versions == [1, 2]
    assert served(target) == (2, [1, 2])
    assert check_repository(target) == [NAME]
    assert sorted(path.name for path in target.parent.iterdir()) == ["model_repository"]


def test_who_changes_the_repository_is_named_while_another_waits(copy: Path) -> None:
    steps: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(staging.locked(copy, NAME, print))

        def on_step(step: str) -> None:
            steps.append(step)
            stack.close()

        assert activate(copy, NAME, 1, on_step=on_step) == 1
    assert steps == [f"waiting for process {os.getpid()} ({process_name()}), which changes {copy.resolve()}"]


def process_name() -> str:
    command = Path("/proc/self/cmdline").read_text(encoding="utf-8").split("\0")
    return " ".join(Path(part).name for part in command[:2])


def test_an_old_version_that_cannot_be_removed_is_said_and_removed_by_the_next(
    copy: Path, fine_tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove = replacement.remove

    def busy(folder: Path) -> None:
        if folder == copy.resolve() / "tiny-bert-encoder" / "1":
            raise OSError(errno.EBUSY, "Device or resource busy", str(folder))
        remove(folder)

    third, fourth = (write_fine_tuned(fine_tuned, tmp_path / f"{shift}" / NAME, shift=shift) for shift in (1, 2))
    monkeypatch.setattr(replacement, "remove", busy)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in BOUNDED.items()]
    command = ["export", "--precision=fp32", *options, "--model-repository", str(copy), "--model"]
    assert main([*command, str(third)]) == 0
    said = capsys.readouterr().out
    assert "version 3 of tiny-bert is active; versions 2, 3 are there\nversion 1 could not be removed (" in said
    assert "Device or resource busy" in said
    assert served(copy) == (3, [2, 3])
    assert check_repository(copy) == [NAME, "tiny-xlmr"]
    monkeypatch.undo()
    assert export(fourth, settled(copy, NAME)).versions == [3, 4]
    assert not (copy / "tiny-bert-encoder" / "1").exists()


def test_a_repository_that_is_a_link_stays_one(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "räpository (v2)").symlink_to(copy)
    assert activate(tmp_path / "räpository (v2)", NAME, 1) == 1
    assert (tmp_path / "räpository (v2)").is_symlink()
    assert served(copy) == (1, [1, 2])
