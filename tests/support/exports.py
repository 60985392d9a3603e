"""The end of an export without its beginning: a version of one repository is put into another."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from triton_rerank.contract import CONFIG_FILE, MANIFEST_FILE
from triton_rerank_export.repository import staging, store
from triton_rerank_export.repository.manifest import read_manifest


def install(source: Path, name: str, version: int, *, replace: bool = False) -> Callable[[Path], None]:
    """What installs it into the repository that it is called with.

    Args:
        source: repository.
        name: public model name.
        version: of the source.
        replace: as export has it.
    """

    def work(target: Path) -> None:
        with staging.told(target), staging.staging(target) as staged:
            for folder in (name, f"{name}-tokenizer", f"{name}-encoder"):
                shutil.copytree(source / folder / str(version), staged / folder / "1")
            (staged / name / "1" / MANIFEST_FILE).unlink()
            manifest = read_manifest(source / name / str(version) / MANIFEST_FILE).numbered(1)
            with staging.locked(target, name, lambda _: None) as real:
                store.install(staged, real, manifest, replace=replace, keep=2)

    return work


def settled(repository: Path, name: str) -> Path:
    """As if the last change of what a model serves were an hour ago; gives the repository."""
    config = repository / name / CONFIG_FILE
    hour_ago = time.time() - 3600
    os.utime(config, (hour_ago, hour_ago))
    return repository
