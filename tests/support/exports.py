"""The end of an export without its beginning: a version of one repository is put into another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_export.repository import staging, store
from triton_rerank_export.repository.manifest import read_manifest


def install(source: Path, name: str, version: int, *, replace: bool = False, keep: int = 2) -> Callable[[Path], None]:
    """What installs it into the repository that it is called with.

    Args:
        source: repository.
        name: public model name.
        version: of the source.
        replace: as export has it.
        keep: likewise.
    """

    def work(target: Path) -> None:
        with staging.told(target), staging.staging(target) as staged:
            for folder in (name, f"{name}-tokenizer", f"{name}-encoder"):
                shutil.copytree(source / folder / str(version), staged / folder / "1")
            (staged / name / "1" / MANIFEST_FILE).unlink()
            manifest = read_manifest(source / name / str(version) / MANIFEST_FILE).numbered(1)
            with staging.locked(target, name, lambda _: None) as real:
                store.install(staged, real, manifest, replace=replace, keep=keep)

    return work
