"""The repository on disk: same bytes twice, all or nothing, and a check that finds what is wrong."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.folders import fingerprint
from support.tiny_models import BOUNDED

from triton_rerank_export.cli import main
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository import staging
from triton_rerank_export.repository.check import check_repository

AS_THERE = [f"--{name.replace('_', '-')}={value}" for name, value in BOUNDED.items()]


@pytest.fixture
def copy(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repository"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlmr"])
def test_exporting_twice_gives_the_same_bytes(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "check", lambda report, precision: None)  # int8 of random weights
    options = ExportOptions(precision=precision)  # type: ignore[arg-type]
    for folder in ("one", "two"):
        export_model(str(checkpoints[name]), tmp_path / folder, options, on_step=lambda _: None)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    assert check_repository(tmp_path / "one") == [name]


def test_an_export_that_fails_the_gate_leaves_the_repository_as_it_was(
    checkpoints: dict[str, Path], copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(copy.parent)
    monkeypatch.setitem(parity.BOUNDS, "fp32", dataclasses.replace(parity.BOUNDS["fp32"], max_logit_difference=1e-12))
    arguments = ["--model", str(checkpoints["tiny-bert"]), "--model-repository", str(copy), "--precision", "fp32"]
    assert main(["export", *arguments, *AS_THERE]) == 1
    assert "does not agree with PyTorch" in capsys.readouterr().err
    assert fingerprint(copy.parent) == before


def test_a_full_disk_leaves_the_repository_as_it_was(checkpoints: dict[str, Path], copy: Path) -> None:
    """A limit on the size of any file stands in for the disk; the kernel answers with an error instead of a signal."""
    before = fingerprint(copy.parent)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [str(Path(sys.executable).parent / "triton-rerank-export"), "export", "--precision", "fp32"]
    done = subprocess.run(
        [*command, "--model", str(checkpoints["tiny-bert"]), "--model-repository", str(copy), *AS_THERE],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "the repository is as it was" in done.stderr
    assert "Traceback" not in done.stderr
    assert fingerprint(copy.parent) == before


def test_nothing_is_left_beside_the_repository(copy: Path) -> None:
    with staging.staging(copy) as staged:
        (staged / "file").touch()
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def delete_graph(folder: Path) -> None:
    (folder / "tiny-bert-encoder" / "1" / "model.onnx").unlink()


def truncate_graph(folder: Path) -> None:
    path = folder / "tiny-bert-encoder" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])


def edit_activation(folder: Path) -> None:
    path = folder / "tiny-bert" / "config.pbtxt"
    path.write_text(path.read_text().replace('"sigmoid"', '"identity"'))


def swap_config(folder: Path) -> None:
    shutil.copyfile(folder / "tiny-xlmr" / "config.pbtxt", folder / "tiny-bert" / "config.pbtxt")


def break_config(folder: Path) -> None:
    (folder / "tiny-bert" / "config.pbtxt").write_text("name: {{{")


def swap_manifest(folder: Path) -> None:
    shutil.copyfile(folder / "tiny-xlmr/1/manifest.json", folder / "tiny-bert/1/manifest.json")


def edit_warmup(folder: Path) -> None:
    (folder / "tiny-bert-encoder" / "warmup" / "attention_mask-32").write_bytes(b"")


def add_a_file(folder: Path) -> None:
    (folder / "tiny-bert-tokenizer" / "1" / "vocab.txt").touch()


def serve_a_missing_version(folder: Path) -> None:
    path = folder / "tiny-bert" / "config.pbtxt"
    path.write_text(path.read_text().replace("versions: 1", "versions: 3"))


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (delete_graph, "tiny-bert-encoder/1/model.onnx: missing"),
        (truncate_graph, "tiny-bert-encoder/1/model.onnx: its sha256 is not the manifest's"),
        (edit_activation, "tiny-bert/config.pbtxt: not what the manifest gives, in parameters"),
        (swap_config, "tiny-bert/config.pbtxt: not what the manifest gives, in ensemble_scheduling, name"),
        (break_config, "tiny-bert/config.pbtxt: not a model config"),
        (edit_warmup, "tiny-bert-encoder/warmup/attention_mask-32: missing or edited"),
        (add_a_file, "tiny-bert-tokenizer/1/vocab.txt: no export wrote it"),
        (serve_a_missing_version, "tiny-bert/config.pbtxt: it serves version 3, but there are [1]"),
        (swap_manifest, "tiny-bert/1/manifest.json: it is the manifest of tiny-xlmr version 1"),
    ],
)
def test_the_check_finds_the_fault(
    copy: Path, damage: Callable[[Path], None], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--model-repository", str(copy)]) == 0
    capsys.readouterr()
    damage(copy)
    assert main(["check", "--model-repository", str(copy)]) == 1
    assert fragment in capsys.readouterr().err


def test_an_empty_repository_is_not_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--model-repository", str(tmp_path)]) == 1
    assert "no model with a manifest.json" in capsys.readouterr().err


def test_a_broken_checkpoint_is_one_message(
    tmp_path: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "broken"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert main(["export", "--model", str(folder), "--model-repository", str(tmp_path / "r")]) == 1
    assert "model.safetensors is not whole" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_check_names_what_is_no_model_and_does_not_mind(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lost+found", ".git", ".ipynb_checkpoints"):
        (copy / name).mkdir()
    (copy / "notes.txt").touch()
    assert main(["check", "--model-repository", str(copy)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["tiny-bert: in order", "tiny-xlmr: in order"]
    assert [line.split(": no model")[0] for line in told[2:]] == [
        ".git",
        ".ipynb_checkpoints",
        "lost+found",
        "notes.txt",
    ]
