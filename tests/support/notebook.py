"""Runs `examples/two_stage.ipynb`: for its test, and for `make notebook`, which writes what it printed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "two_stage.ipynb"
TIMEOUT_S = 900  # a cell, on busy cores


def executed(repository: Path) -> Any:
    """The notebook with the outputs of a run on this model repository."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ["MODEL_REPOSITORY"] = str(repository.resolve())
    NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(Path(sys.argv[1])), NOTEBOOK)
