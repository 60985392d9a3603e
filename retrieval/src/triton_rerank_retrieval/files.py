"""How files become visible: whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triton_rerank import ConfigurationError

MANIFEST = "manifest.json"


class IndexFileError(ConfigurationError):
    """A saved index that cannot be used: broken, not an index, or of another model."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file; an interrupt leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path, facts: Mapping[str, object]) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``folder`` when it is whole, with a manifest of its files' digests.

    Args:
        folder: the old one stays until then, and after an error.
        facts: what the manifest says beside the digests.

    Raises:
        ConfigurationError: it cannot be written, or ``folder`` is there and is no index.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ConfigurationError(f"{folder} is there and is no index, so it is not replaced: give another folder")
    staged = _staging(folder)
    try:
        yield staged
        content = {**facts, "files": {file.name: file_digest(file) for file in sorted(staged.iterdir())}}
        (staged / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        staged.chmod(0o755)
        _swap(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def read_manifest(folder: Path, kind: str) -> Mapping[str, Any]:
    """The manifest of a saved index, after its files were compared with it.

    Raises:
        IndexFileError: no index of this kind, or a file is missing or was changed.
    """
    try:
        manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise IndexFileError(f"{folder} holds no index ({exc}): build it, and save it there") from exc
    if manifest.get("kind") != kind:
        raise IndexFileError(f"{folder} holds an index of the kind {manifest.get('kind')!r}, not {kind!r}")
    for name, digest in files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise IndexFileError(f"{folder / name} is missing or broken: build the index anew, and save it there")
    return manifest


def digest_of(*texts: str) -> str:
    """A short name for texts; no two different lists of texts share one."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def _staging(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as exc:
        raise ConfigurationError(f"{folder} cannot be written: {exc.strerror or exc}") from exc


def _swap(staged: Path, folder: Path) -> None:
    """Between the two renames an interrupt puts the old folder back."""
    if not folder.exists():
        staged.rename(folder)
        return
    old = folder.with_name(f"{staged.name}-old")
    folder.rename(old)
    try:
        staged.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def file_digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()  # hashlib.file_digest is there from Python 3.11 on
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
