from __future__ import annotations

from pathlib import Path

import pytest

from triton_rerank_server.models import control_flags, foreign_entries, model_names


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
