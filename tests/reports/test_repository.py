"""The model repository on disk: foreign and half-written things in it, and folders that may not be written."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.mounts import own_mounts, possible
from support.serving import answers, script, serving
from support.tritons import NAME

from triton_rerank_export.errors import ExportError
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository.check import check_repository

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # a tiny model on busy cores


@pytest.fixture
def repository(served: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(served, tmp_path / "models"))


def test_foreign_folders_do_not_stop_a_start_and_are_named_by_check(repository: Path) -> None:
    """triton-inference-server/server#3786, triton-inference-server/server#5786, triton-inference-server/server#4980: a
    folder that is no model (of a volume, a notebook, git) ended the server."""
    foreign = ("lost+found", ".git", ".ipynb_checkpoints", "notes")
    for name in foreign:
        (repository / name).mkdir()
    (repository / ".git" / "config").touch()
    (repository / "README.md").touch()
    with serving(repository) as target:
        assert answers(target)
    process = subprocess.run(
        [script("triton-rerank-export"), "check", "--model-repository", str(repository)], capture_output=True, text=True
    )
    assert all(name in process.stdout + process.stderr for name in foreign)


def test_what_a_killed_export_left_is_invisible_and_goes_with_the_next(
    checkpoints: dict[str, Path], repository: Path
) -> None:
    """triton-inference-server/server#7632: a model that was half written was loaded, or ended the server."""
    export = [script("triton-rerank-export"), "export", "--model", str(checkpoints[NAME]), "--precision", "fp32"]
    before = sorted(path.relative_to(repository) for path in repository.rglob("*"))
    with subprocess.Popen(
        [*export, "--model-repository", str(repository), "--replace"], stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "converting" in line:
                break
        process.kill()
    assert [path for path in before if not (repository / path).exists()] == []
    with serving(repository) as target:
        assert answers(target)
    export_model(
        str(checkpoints[NAME]), repository, ExportOptions(precision="fp32", replace=True), on_step=lambda _: None
    )
    assert check_repository(repository) == [NAME]
    left = [path for path in (*repository.parent.iterdir(), *repository.iterdir()) if path.name.startswith(".")]
    assert left == []


def test_an_owner_who_may_not_write_beside_the_repository_can_export(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """hashicorp/consul-template#1102: a temporary file beside the target, in a folder that one may not write."""
    become = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if not possible(*become):
        pytest.skip("unshare cannot make a user namespace here")
    repository = tmp_path / "srv" / "models"
    repository.mkdir(parents=True)
    repository.parent.chmod(0o555)
    export = [script("triton-rerank-export"), "export", "--model", str(checkpoints[NAME]), "--precision", "fp32"]
    try:
        process = subprocess.run(
            [*become, *export, "--model-repository", str(repository)],
            capture_output=True,
            text=True,
            env=ONE_THREAD,
        )
    finally:
        repository.parent.chmod(0o755)
    assert process.returncode == 0, process.stderr
    assert check_repository(repository) == [NAME]
    assert [path.name for path in repository.parent.iterdir()] == ["models"]


def test_a_repository_on_a_read_only_volume_is_served_and_an_export_refused(
    checkpoints: dict[str, Path], served: Path
) -> None:
    """own: a volume that is mounted read-only."""
    read_only = own_mounts(f"mount --bind -o ro '{served}' '{served}' && mount -o remount,bind,ro '{served}'")
    with serving(served, before=read_only) as target:
        assert answers(target)
    export = [script("triton-rerank-export"), "export", "--model", str(checkpoints[NAME]), "--name", "another"]
    process = subprocess.run(
        [*read_only, *export, "--model-repository", str(served)], capture_output=True, text=True, env=ONE_THREAD
    )
    assert process.returncode == 1
    assert "cannot be written" in process.stderr and "Traceback" not in process.stderr


def test_an_exported_folder_that_is_no_repository_is_said_so(tmp_path: Path) -> None:
    """triton-inference-server/server#3687, triton-inference-server/server#3688: "failed to load all models" for a
    folder whose models have no version."""
    (tmp_path / "models" / "reranker").mkdir(parents=True)
    (tmp_path / "models" / "reranker" / "model.onnx").touch()
    with pytest.raises(ExportError, match=r"no model with a manifest\.json"):
        check_repository(tmp_path / "models")
