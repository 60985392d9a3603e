"""Reading a checkpoint in a test: what was found, or the one line that refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triton_rerank_export.checkpoint.resolve import Checkpoint, read_checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.options import ExportOptions


def read(folder: Path, **options: Any) -> Checkpoint:
    return read_checkpoint(folder, ExportOptions(**options), name="m", source="s")


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as error:
        read(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
