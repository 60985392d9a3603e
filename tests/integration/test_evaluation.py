"""The evaluation by a model that a real Triton serves: started by the command, and one that is there already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.toy_collection import write_collection

from triton_rerank_retrieval.eval.cli import main

TINY = "tiny-bert"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of matplotlib, for a plot with few points
def test_a_repository_is_served_and_measured(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_collection(tmp_path / "toy")
    output = tmp_path / "eval"
    arguments = ["--data", str(data), "--model-repository", f"served={tiny_repository}", "--model", TINY]
    arguments += ["--no-bi-encoder", "--no-sweep", "--time-queries", "1", "--work", str(tmp_path / "work")]
    assert main([*arguments, "--output", str(output)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["toy"]
    assert {"BM25", "BM25 > served"} <= figures.keys()
    assert all(0 <= value <= 1 for value in figures.values())
    assert {"report.html", "report.md", "report.json", "runs"} <= {path.name for path in output.iterdir()}
