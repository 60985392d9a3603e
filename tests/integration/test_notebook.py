"""`examples/two_stage.ipynb` runs, and shows what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.notebook import NOTEBOOK, executed

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?: m?s\b)?")
BETWEEN_PROCESSORS = 0.02  # fp32 rounds in other places: a figure's last digit, or two documents that are close


def printed(notebook: Any) -> list[str]:
    """What each code cell printed."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.text for output in cell if output.output_type == "stream") for cell in cells]


def same(shown: str, now: str) -> None:
    """Words alike, numbers nearly, times in any case."""
    assert NUMBER.split(now) == NUMBER.split(shown)
    for before, after in zip(NUMBER.findall(shown), NUMBER.findall(now), strict=True):
        if not before.endswith("s"):
            near = pytest.approx(float(before), abs=BETWEEN_PROCESSORS, rel=BETWEEN_PROCESSORS)
            assert float(after) == near, (shown, now)


@pytest.mark.timeout(1200)
def test_the_notebook_shows_what_it_prints(demo_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_REPOSITORY", "")  # is as it was, afterwards
    stored, run = nbformat.read(NOTEBOOK, as_version=4), executed(demo_fp32)
    assert sum(map(bool, printed(stored))) >= 10
    for shown, now in zip(printed(stored), printed(run), strict=True):
        same(shown, now)
    for notebook in (stored, run):
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert any("image/png" in output.get("data", {}) for output in outputs)
        assert not any(output.get("name") == "stderr" for output in outputs)
