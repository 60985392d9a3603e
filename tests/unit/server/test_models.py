from __future__ import annotations

from pathlib import Path

import pytest

from triton_rerank_server import ServerStartError, models
from triton_rerank_server.cli import main
from triton_rerank_server.models import check_repository, control_flags, foreign_entries, idle_gpu, model_names


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models, and what lies about in real folders."""
    for name in ("m", "m-encoder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").touch()
    for name in ("lost+found", ".git", ".ipynb_checkpoints", ".snapshot", "half/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".snapshot" / "config.pbtxt").touch()
    (tmp_path / "README.md").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    return tmp_path


def test_models_are_the_folders_with_a_config_and_the_rest_is_foreign(repository: Path) -> None:
    assert model_names(repository) == ["m", "m-encoder"]
    foreign = [".git", ".ipynb_checkpoints", ".snapshot", "README.md", "gone", "half", "lost+found"]
    assert foreign_entries(repository) == foreign


def test_the_check_names_models_and_not_their_steps(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step of no model here, and a model of somebody else, are what they are."""
    for name in ("m-tokenizer", "x-encoder", "yolo", "m"):
        (repository / name / "1").mkdir(parents=True, exist_ok=True)
        (repository / name / "config.pbtxt").touch()
    (repository / "m-encoder" / "1").mkdir()
    assert main(["--model-repository", str(repository), "--check"]) == 0
    assert capsys.readouterr().out == f"{repository}: m, x-encoder, yolo\n"


NAMED = ["--model-control-mode=explicit", "--load-model=m", "--load-model=m-encoder"]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ([], NAMED),
        (["--log-verbose=1"], [*NAMED, "--log-verbose=1"]),
        (["--model-control-mode=explicit", "--load-model=*"], NAMED),
        (["--model-control-mode", "explicit", "--load-model", "*", "--log-info", "0"], [*NAMED, "--log-info", "0"]),
        (["--model-control-mode=explicit", "--load-model=m"], ["--model-control-mode=explicit", "--load-model=m"]),
        (["--model-control-mode=explicit"], ["--model-control-mode=explicit"]),
        (["--model-control-mode=poll"], ["--model-control-mode=poll", "--exit-on-error=false"]),
        (["--model-control-mode=none", "--exit-on-error=true"], [*NAMED, "--exit-on-error=true"]),
    ],
)
def test_triton_is_told_to_read_models_only(repository: Path, given: list[str], flags: list[str]) -> None:
    assert control_flags(repository, given) == flags


def test_without_foreign_folders_a_model_that_fails_ends_a_polling_server(tmp_path: Path) -> None:
    assert control_flags(tmp_path, ["--model-control-mode=poll"]) == ["--model-control-mode=poll"]


def test_a_model_that_was_never_built_is_told_before_triton_is_started(repository: Path) -> None:
    with pytest.raises(ServerStartError, match="m: not built, only config.pbtxt is there; `make demo` builds"):
        check_repository(repository, [])
    (repository / "m" / "1").mkdir()
    with pytest.raises(ServerStartError, match="m: not built"):  # its encoder is not
        check_repository(repository, ["--model-control-mode=explicit", "--load-model=*"])
    (repository / "m-encoder" / "3").mkdir()
    check_repository(repository, [])


@pytest.mark.parametrize(
    "flags", [["--model-control-mode=explicit"], ["--model-control-mode=poll"], ["--exit-on-error=false"]]
)
def test_a_triton_that_goes_on_without_it_is_started(repository: Path, flags: list[str]) -> None:
    check_repository(repository, flags)


GPU = "instance_group { kind: KIND_GPU }"


@pytest.mark.parametrize(
    ("devices", "configs", "is_said"),
    [
        (["nvidia0"], ["instance_group { kind: KIND_CPU }"] * 2, True),
        (["nvidia0"], ["instance_group { kind: KIND_CPU }", GPU], False),
        (["nvidia0"], ["", ""], False),  # Triton chooses, and takes the GPU
        (["nvidiactl", "null"], ["instance_group { kind: KIND_CPU }"] * 2, False),
    ],
)
def test_a_gpu_that_nothing_uses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[str], configs: list[str], is_said: bool
) -> None:
    monkeypatch.setattr(models, "_DEVICES", tmp_path / "dev")
    for device in devices:
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / device).touch()
    for number, config in enumerate(configs):
        folder = tmp_path / "repository" / f"m{number}-encoder"
        folder.mkdir(parents=True)
        (folder / "config.pbtxt").write_text(config)
    said = idle_gpu(tmp_path / "repository")
    assert (said is not None) == is_said
    assert said is None or "PRECISION=fp16" in said


def test_a_config_that_cannot_be_read_is_a_fault_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a machine with a GPU reads it here, so only there it would have been a traceback."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(models, "_DEVICES", tmp_path)
    (tmp_path / "repository" / "m-encoder").mkdir(parents=True)
    (tmp_path / "repository" / "m-encoder" / "config.pbtxt").write_text("input {")
    with pytest.raises(ServerStartError, match="not a model config"):
        idle_gpu(tmp_path / "repository")
