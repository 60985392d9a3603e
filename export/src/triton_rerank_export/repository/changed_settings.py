"""Serves a model that is there with other settings, or one of another repository, without computing its graph again.

What is put in place is a version like any other: the files are those of the version that it was made from, under a
second name where the file system has one to give. So it becomes active in one step, goes back by `activate`, and its
manifest holds the settings that it is served with.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository import replacement, staging
from triton_rerank_export.repository.check import holding, version_is_whole
from triton_rerank_export.repository.manifest import Manifest, version_folders
from triton_rerank_export.repository.settings import Settings, changes, listed, shared_by_versions
from triton_rerank_export.repository.store import (
    Installed,
    Progress,
    active_version,
    check_compatible,
    install,
    installed_version,
)
from triton_rerank_export.repository.triton_config import ServedModel


def change_settings(
    model_repository: Path,
    name: str,
    settings: Settings,
    *,
    source: Path | None = None,
    replace: bool = False,
    keep: int,
    on_step: Progress = lambda _: None,
) -> tuple[Installed | None, list[str]]:
    """Make a version with other settings the active one.

    Args:
        model_repository: that is served.
        name: public model name.
        settings: None in it keeps what the version has that it is made from.
        source: repository whose active version is taken; None means the one that is served.
        replace: it takes the place of all versions that are there, and need not be like them.
        keep: versions that stay, this one included.
        on_step: called where another process has to be waited for.

    Returns:
        What is installed now, or None if it was so already; and a sentence for each setting that differs from the
        version that it was made from.

    Raises:
        ExportError: no such model, a setting that it cannot be served with, a source that is not whole, or the
            repository cannot be written.
        KeyboardInterrupt: after Ctrl-C; its message says what is active.
    """
    _active(source or model_repository, name)  # before a folder is made
    with (
        staging.told(model_repository),
        staging.locked(model_repository, name, on_step) as target,
        staging.staging(target) as staged,
    ):
        taken_from = (source or target).resolve()
        old = _active(taken_from, name)
        model = settings.applied(old.model)
        _check(taken_from, old, model)
        manifest = dataclasses.replace(old, model=model).numbered(1)
        if holding(target, manifest) is not None:
            return None, changes(old.model, model)
        if not replace:
            check_compatible(target, manifest.model)
        for folder, new in zip(
            version_folders(taken_from, old.model), version_folders(staged, manifest.model), strict=True
        ):
            shutil.copytree(
                folder, new, copy_function=replacement.link, ignore=shutil.ignore_patterns(MANIFEST_FILE, ".*")
            )
        return install(staged, target, manifest, replace=replace, keep=keep), changes(old.model, model)


def as_it_is(model_repository: Path, name: str) -> str:
    """All settings of the active version, for people.

    Raises:
        ExportError: no such model.
    """
    return listed(_active(model_repository, name).model)


def _active(repository: Path, name: str) -> Manifest:
    versions, _ = installed_version(repository, name, None)
    active = active_version(repository, name)
    if active not in versions:
        raise ExportError(
            f"{repository}: {name} serves version {active}, but there are {sorted(versions)}; activate one"
        )
    return versions[active]


def _check(repository: Path, old: Manifest, model: ServedModel) -> None:
    fixed = shared_by_versions(model)
    built = [name for name in sorted(fixed) if getattr(old.model, name) != getattr(model, name)]
    if built:
        raise ExportError(f"{model.name}: its TensorRT plan was built for its {' and '.join(built)}; export it again")
    if not version_is_whole(repository, old):
        raise ExportError(
            f"{repository}: version {old.model.version} of {model.name} is not what its manifest says; "
            "`triton-rerank-export check` (make repository-check) says what differs"
        )
