"""Checkpoints of before tokenizer.json: transformers makes one of their vocabulary."""

from __future__ import annotations

import tempfile
from pathlib import Path

from triton_rerank_export.checkpoint.facts import TOKENIZER

VOCABULARY = "vocab.txt"  # of WordPiece


def with_tokenizer(folder: Path, work: Path, label: str) -> Path:
    """A checkpoint's folder with tokenizer.json.

    Args:
        folder: checkpoint folder.
        work: scratch folder.
        label: what the checkpoint is called in a message.

    Returns:
        The folder itself if it has one, or no vocabulary; else a folder of the same name with links to its files,
        and beside them the one that transformers makes of them.

    Raises:
        ExportError: transformers makes no fast tokenizer of them.
    """
    if (folder / TOKENIZER).is_file() or not (folder / VOCABULARY).is_file():
        return folder
    from triton_rerank_export.gate.reference import load_tokenizer

    tokenizer = load_tokenizer(folder, label).backend_tokenizer
    completed = Path(tempfile.mkdtemp(dir=work)) / folder.name
    completed.mkdir()
    link_files(folder, completed)
    tokenizer.save(str(completed / TOKENIZER))
    return completed


def link_files(folder: Path, target: Path) -> None:
    """Put links to the files of a folder into another one."""
    for path in folder.iterdir():
        (target / path.name).symlink_to(path.resolve())
