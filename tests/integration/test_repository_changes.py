"""Triton never sees an export at work, and serves what a killed one left; a real export, stopped and doubled."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support.exports import install
from support.faults import killed
from support.folders import fingerprint
from support.tiny_models import BOUNDED
from support.tritons import start

from triton_rerank import RerankClient
from triton_rerank_export.errors import ExportError
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository import replacement
from triton_rerank_export.repository.check import check_repository
from triton_rerank_export.repository.store import activate
from triton_rerank_server import TritonServer, atomic
from triton_rerank_server.atomic import scratch

NAME, REPOSITORY = "tiny-bert", "model_repository"
OPTIONS = ExportOptions(precision="fp32", **BOUNDED)
COMMAND = [str(Path(sys.executable).parent / "triton-rerank-export"), "export", "--precision", "fp32"]
COMMAND += [f"--{name.replace('_', '-')}={value}" for name, value in BOUNDED.items()]


def logit(server: TritonServer) -> float:
    with RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
        (ranked,) = client.rerank("how to zip a file", ["gzip shrinks files"])
    assert ranked.logit is not None
    return ranked.logit


@pytest.fixture
def copy(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / REPOSITORY))


def test_a_server_that_starts_in_the_middle_of_an_export_sees_nothing_of_it(
    copy: Path, fine_tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TMPDIR elsewhere, as where the repository is a mount."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "zwischenlager"))
    (tmp_path / "zwischenlager").mkdir()
    monkeypatch.setattr(atomic, "scratch", in_temporary)
    before = sorted(path.name for path in copy.iterdir())
    logs: list[str] = []

    def on_step(step: str) -> None:
        if step.startswith("comparing") and not logs:
            assert sorted(path.name for path in copy.iterdir()) == before
            with start(copy) as server:
                logs.append(server.log_file.read_text())

    assert export_model(str(fine_tuned), copy, OPTIONS, on_step=on_step).versions == [1, 2]
    assert "Poll failed" not in logs[0]
    assert not list((tmp_path / "zwischenlager").iterdir())


def in_temporary(parent: Path, name: str) -> AbstractContextManager[Path]:
    """No scratch folder beside the repository."""
    if parent != Path(tempfile.gettempdir()) and name == REPOSITORY:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))
    return scratch(parent, name)


def test_what_a_replacement_that_was_killed_half_way_left_is_served_as_the_new_model(
    copy: Path, two_versions: Path, server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacement, "_give_own_names", lambda *_: os._exit(9))
    assert killed(lambda: install(two_versions, NAME, 2, replace=True)(copy))
    assert (copy / f"{NAME}.incoming-encoder").is_dir()
    with pytest.raises(ExportError, match=f"activate --model {NAME}` finishes it"):
        check_repository(copy)
    with start(copy) as restarted:
        assert logit(restarted) == pytest.approx(logit(server) + 3, abs=1e-3)
    monkeypatch.undo()
    assert activate(copy, NAME) == 2
    assert check_repository(copy) == [NAME, "tiny-xlmr"]
    assert not list(copy.glob("*.incoming-*"))


def test_ctrl_c_in_an_export_ends_with_130_and_the_truth(copy: Path, fine_tuned: Path) -> None:
    before = fingerprint(copy.parent)
    command = [*COMMAND, "--model", str(fine_tuned), "--model-repository", str(copy)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as export:
        assert export.stderr is not None
        for line in export.stderr:
            if line.startswith("tracing"):
                export.send_signal(signal.SIGINT)
                break
        error = export.stderr.read()
    assert (export.returncode, error.splitlines()[-1]) == (
        130,
        "triton-rerank-export: interrupted; the repository is as it was",
    )
    assert fingerprint(copy.parent) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
