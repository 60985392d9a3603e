"""The small files of a checkpoint: read whole, or refused with the file's name and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from triton_rerank_export.errors import ExportError, cause

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WORDS = {dict: "a JSON object", list: "a JSON array"}

Kind = TypeVar("Kind", dict[str, Any], list[Any])


def read_object(path: Path, label: str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        path: the file.
        label: what the checkpoint is called in a message.

    Raises:
        ExportError: it is missing, a pointer of git-lfs, no JSON, or holds something else.
    """
    return _read(path, label, dict)


def read_array(path: Path, label: str) -> list[Any]:
    """As `read_object`, for a JSON array."""
    return _read(path, label, list)


def read_object_if_there(path: Path, label: str) -> dict[str, Any]:
    """As `read_object`; empty where there is no such file."""
    return read_object(path, label) if path.is_file() else {}


def check_no_pointer(path: Path, label: str) -> None:
    """Refuse what git leaves in a file's place where git-lfs was not installed.

    Raises:
        ExportError: the file is such a pointer, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_LFS_POINTER))
    except OSError as exc:
        raise ExportError(f"{label}: {path.name} cannot be read ({exc.strerror})") from exc
    if begin == _LFS_POINTER:
        raise ExportError(
            f"{label}: {path.name} is a pointer of git-lfs, not the file itself; run `git lfs pull` in the clone, or "
            "download the file from the hub"
        )


def _read(path: Path, label: str, kind: type[Kind]) -> Kind:
    if not path.is_file():
        raise ExportError(f"{label}: no {path.name}; it is not a Hugging Face checkpoint folder")
    check_no_pointer(path, label)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ExportError(f"{label}: {path.name} is not whole, or no JSON ({cause(exc)}); get it anew") from exc
    if not isinstance(content, kind):
        raise ExportError(f"{label}: {path.name} holds {_shown(content)}; {_WORDS[kind]} was expected")
    return content


def _shown(content: object) -> str:
    text = repr(content)
    return text if len(text) <= 80 else f"{text[:79]}…"
