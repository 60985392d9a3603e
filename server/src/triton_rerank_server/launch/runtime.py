"""The folder that a running Triton lives in: backends, log, and a way to the repository that every part can go."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from triton_rerank_server.errors import ServerStartError

_PLAIN = re.compile(r"[A-Za-z0-9_./+@%:,-]+")
_ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a folder of its own is made inside
_LINK = "models"


def make_runtime() -> Path:
    """Make an empty folder whose path is plain ASCII without spaces.

    Triton 2.51 starts a Python backend through a shell, with its paths unquoted (python_backend#401).

    Raises:
        ServerStartError: there is no place for one.
    """
    asked = tempfile.gettempdir()
    for parent in (asked, *_ELSEWHERE):
        if _PLAIN.fullmatch(parent) and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="triton-rerank-", dir=parent))
    raise ServerStartError(
        f"no folder for temporary files: {asked!r} and {', '.join(_ELSEWHERE)} cannot be written, or their paths have "
        "characters that Triton's Python backend cannot start from; set TMPDIR to a folder with a plain ASCII path"
    )


def link_repository(runtime: Path, model_repository: Path) -> Path:
    """A link with a plain path to a repository whose own path may have spaces, umlauts or links in it."""
    link = runtime / _LINK
    link.symlink_to(model_repository.resolve(), target_is_directory=True)
    return link


def hide_models(runtime: Path, model_repository: Path, hidden: Collection[str]) -> Path:
    """Show Triton the repository without some models; returns the folder in which it finds the others from now on."""
    rest, draft = runtime / "rest", runtime / f".{_LINK}"
    rest.mkdir()
    for entry in model_repository.resolve().iterdir():
        if entry.name not in hidden:
            (rest / entry.name).symlink_to(entry)
    draft.symlink_to(rest, target_is_directory=True)
    draft.replace(runtime / _LINK)
    return rest
