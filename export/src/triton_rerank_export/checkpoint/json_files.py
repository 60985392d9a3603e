"""The small files of a checkpoint: read whole, or refused with the file's name and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_rerank_export.errors import ExportError, cause

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MOST = 10**7  # no number in these files is larger, whatever the model


class Stated(dict[str, Any]):
    """What a file states: its JSON object.

    Args:
        file: its name in the checkpoint's folder, for messages.
        content: nothing where there is no such file.
    """

    def __init__(self, file: str, content: Mapping[str, Any] | None = None) -> None:
        super().__init__(content or {})
        self.file = file

    def wrong(self, key: str, value: object, expected: str) -> ExportError:
        """Why a value is refused."""
        return ExportError(f"{key} in {self.file} is {value!r:.80}; {expected} was expected")

    def number(self, key: str, *, least: int = 0, default: int | None = None) -> int:
        """A whole number.

        Raises:
            ExportError: it is another thing, or out of bounds.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
            raise self.wrong(key, value, f"a number from {least}")
        return value


def read_object(folder: Path, name: str) -> Stated:
    """Read a file that holds a JSON object.

    Args:
        folder: checkpoint folder.
        name: of the file, with the folder that it has inside, such as ``1_Pooling/config.json``.

    Raises:
        ExportError: it is missing, a pointer of git-lfs, no JSON, or holds something else.
    """
    return Stated(name, _read(folder, name, dict, "a JSON object"))


def read_array(folder: Path, name: str) -> list[Any]:
    """As `read_object`, for a JSON array."""
    return list(_read(folder, name, list, "a JSON array"))


def read_object_if_there(folder: Path, name: str) -> Stated:
    """As `read_object`; empty where there is no such file."""
    return read_object(folder, name) if (folder / name).is_file() else Stated(name)


def check_no_pointer(path: Path, *, module: str = "") -> None:
    """Refuse what git leaves in a file's place where git-lfs was not installed.

    Args:
        path: the file.
        module: begins the message where the file is that of a module.

    Raises:
        ExportError: the file is such a pointer, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_LFS_POINTER))
    except OSError as exc:
        raise ExportError(f"{module}{path.name} cannot be read ({exc.strerror})") from exc
    if begin == _LFS_POINTER:
        raise ExportError(
            f"{module}{path.name} is a pointer of git-lfs, not the file itself; run `git lfs pull` in the clone, or "
            "download the file from the hub"
        )


def _read(folder: Path, name: str, kind: type, expected: str) -> Any:
    path = folder / name
    module = "".join(f"{part}: " for part in name.split("/")[:-1])
    if not path.is_file():
        raise ExportError(f"{module}no {path.name}; it is not a Hugging Face checkpoint folder")
    check_no_pointer(path, module=module)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ExportError(f"{module}{path.name} is not whole, or no JSON ({cause(exc)}); get it anew") from exc
    if not isinstance(content, kind):
        text = repr(content)
        shown = text if len(text) <= 80 else f"{text[:79]}…"
        raise ExportError(f"{module}{path.name} holds {shown}; {expected} was expected")
    return content
