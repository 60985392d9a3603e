"""`make guide`: what is in the repository is measured, the rest of the catalogue is listed by its cards."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.toy_collection import write_collection

from triton_rerank_export.checkpoint.catalogue import CATALOGUE


def guide(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "bench" / "experiments" / "model_guide.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.timeout(600)
def test_models_of_the_repository_are_measured_and_the_others_listed(
    root: Path, tiny_repository: Path, tmp_path: Path
) -> None:
    page = tmp_path / "models.md"
    arguments = ["--model-repository", str(tiny_repository), "--calls", "3", "--output", str(page)]
    done = guide(root, *arguments, "--data", str(write_collection(tmp_path / "toy")))
    assert done.returncode == 0, done.stderr
    measured, others = page.read_text(encoding="utf-8").split("## Not here")
    for name in ("tiny-bert", "tiny-xlmr"):
        row = re.search(rf"^\| {name} \| fp32 \| (.+) \|$", measured, re.MULTILINE)
        assert row is not None
        _megabytes, pairs_per_s, p50, p99, quality, *_ = row[1].split(" | ")
        assert float(pairs_per_s) > 0
        assert float(p99) >= float(p50) > 0
        assert all(0 <= float(figure) <= 1 for figure in quality.split(" → "))
    assert re.findall(r"^\| ([^ ]+) \|", others, re.MULTILINE)[2:] == list(CATALOGUE)


def test_an_empty_repository_says_what_to_do(root: Path, tmp_path: Path) -> None:
    done = guide(root, "--model-repository", str(tmp_path), "--data", "absent", "--output", str(tmp_path / "models.md"))
    assert (done.returncode, "make export MODEL=" in done.stdout) == (2, True)
    assert not (tmp_path / "models.md").exists()
