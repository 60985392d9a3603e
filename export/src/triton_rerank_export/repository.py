"""The model repository on disk: versions side by side, written beside the repository and renamed into it.

A model is three folders, each with a folder per version. The steps hold every version that is kept ready; the
ensemble serves one, the **active** version, and names it to both steps. So a running server changes versions, forth
and back, by reloading the ensemble alone: all requests see one version, whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from triton_rerank import ConfigurationError
from triton_rerank import repository as reader
from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_export.errors import ExportError
from triton_rerank_export.manifest import Manifest, read_manifest, version_folders, write_manifest
from triton_rerank_export.triton_config import ServedModel, to_text
from triton_rerank_export.warmup import warmup_files

DEFAULT_KEEP_VERSIONS = 2  # the active one and the one before, to go back to


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A scratch folder on the repository's own file system, gone afterwards.

    It lies beside the repository where it can, since Triton takes every folder inside for a model. A repository that
    was made for it and got nothing is gone afterwards too.
    """
    made = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev
    folder = Path(tempfile.mkdtemp(prefix=f".{repository.name}-", dir=parent if beside else repository))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made and not any(repository.iterdir()):
            repository.rmdir()


def installed_versions(repository: Path, name: str) -> dict[int, Manifest]:
    """Version -> manifest, ascending, of a public model name; empty if the model is not there.

    Raises:
        ExportError: a manifest cannot be read.
    """
    return {version: read_manifest(path) for version, path in reader.manifest_files(repository, name).items()}


def active_version(repository: Path, name: str) -> int:
    """The version that the ensemble's config serves.

    Raises:
        ExportError: no config, or one that names another number of versions than one.
    """
    try:
        return reader.active_version(repository, name)
    except ConfigurationError as exc:
        raise ExportError(str(exc)) from exc


def next_version(repository: Path, model: ServedModel) -> int:
    """One more than the highest number in use, finished or left over."""
    used = (version for name in model.configs() for version in reader.version_folders(repository, name))
    return max(used, default=0) + 1


def check_compatible(repository: Path, model: ServedModel) -> None:
    """A new version shares the steps' configs with those beside it.

    Raises:
        ExportError: it would need others; says which fields differ.
    """
    beside = installed_versions(repository, model.name)
    if not beside:
        return
    old, new = beside[max(beside)].model, dataclasses.replace(model, version=max(beside))
    fields = [
        f"{field.name} {getattr(old, field.name)!r} → {getattr(new, field.name)!r}"
        for field in dataclasses.fields(ServedModel)
        if field.name not in _FREE_FIELDS and getattr(old, field.name) != getattr(new, field.name)
    ]
    if fields:
        raise ExportError(
            f"{repository}: {model.name} is there with other settings ({', '.join(fields)}), and versions of a model "
            "share their settings; replace it with --replace (REPLACE=1), or give this one another --name"
        )


# What may differ between versions. Not the activation: a client reads it once, when it begins.
_FREE_FIELDS = {"version", "source", "revision", "licence"}


def lay_out(staged: Path, model: ServedModel, tokenizer: Path, graph_files: Sequence[Path]) -> None:
    """Write the version folders of a model, without the manifest.

    Args:
        staged: repository to write into.
        model: gives names and version.
        tokenizer: tokenizer.json; copied.
        graph_files: what the encoder's version folder holds; moved.
    """
    for folder in version_folders(staged, model):
        folder.mkdir(parents=True)
    shutil.copyfile(tokenizer, staged / model.tokenizer_name / str(model.version) / "tokenizer.json")
    for file in graph_files:
        shutil.move(file, staged / model.encoder_name / str(model.version) / file.name)


def install(staged: Path, repository: Path, manifest: Manifest, *, replace: bool, keep: int) -> list[int]:
    """Put a staged version into the repository and make it the active one; all of it, or nothing.

    Args:
        staged: as `lay_out` left it.
        repository: model repository.
        manifest: of the staged version.
        replace: the model's folders are put in place of the old ones, with all their versions.
        keep: versions that stay, this one included; the one that was active is among them.

    Returns:
        The versions that are there now, ascending.

    Raises:
        ExportError: a rename failed; what was there is back in its place.
    """
    model = manifest.model
    write_manifest(staged / model.name / str(model.version) / MANIFEST_FILE, manifest)
    kept = _kept_versions(repository, model, replace=replace, keep=keep)
    _write_configs(staged, model, kept)
    names = list(model.configs())
    if replace or not all((repository / name).is_dir() for name in names):
        _place(staged, repository, [Path(name) for name in names])
        return kept
    folders = [folder.relative_to(staged) for folder in version_folders(staged, model)]
    configs = [Path(model.encoder_name, "warmup"), *(Path(name, "config.pbtxt") for name in names)]
    _place(staged, repository, [*folders, *(path for path in configs if (staged / path).exists())])
    _prune(repository, names, kept)
    return kept


def activate(repository: Path, name: str, version: int | None = None) -> int:
    """Make an installed version the one that the ensemble serves; the newest by default.

    Returns:
        The version.

    Raises:
        ExportError: the model or the version is not there, or the repository cannot be written.
    """
    versions = installed_versions(repository, name)
    if not versions:
        raise ExportError(f"{repository}: no model {name!r} with a {MANIFEST_FILE}; `make export MODEL=…` builds one")
    chosen = max(versions) if version is None else version
    if chosen not in versions:
        raise ExportError(f"{repository}: {name} has the versions {sorted(versions)}, not {chosen}")
    model = versions[chosen].model
    try:
        with staging(repository) as staged:
            _write_configs(staged, model, list(versions))
            _place(staged, repository, [Path(folder, "config.pbtxt") for folder in model.configs()])
    except OSError as exc:
        raise ExportError(f"{repository}: cannot be written ({exc}); it is as it was") from exc
    return chosen


def _kept_versions(repository: Path, model: ServedModel, *, replace: bool, keep: int) -> list[int]:
    if replace:
        return [model.version]
    others = set(installed_versions(repository, model.name)) - {model.version}
    active = {active_version(repository, model.name)} & others if others else set()
    newest = sorted(others - active, reverse=True)[: max(0, keep - 1 - len(active))]
    return sorted({model.version, *active, *newest} if keep > 1 else {model.version})


def _write_configs(staged: Path, model: ServedModel, kept: Sequence[int]) -> None:
    for name, config in model.configs(kept).items():
        (staged / name).mkdir(exist_ok=True)
        (staged / name / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
    files = warmup_files(model.warmup, ladder=model.ladder)
    for file, content in files.items():
        path = staged / model.encoder_name / "warmup" / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def _place(staged: Path, repository: Path, paths: Sequence[Path]) -> None:
    """Rename staged folders and files over those of the repository; on a failure everything goes back."""
    previous = Path(tempfile.mkdtemp(prefix=".previous-", dir=staged))
    done: list[Path] = []
    try:
        for path in paths:
            done.append(path)
            if (repository / path).exists():
                (previous / path).parent.mkdir(parents=True, exist_ok=True)
                (repository / path).rename(previous / path)
            (staged / path).rename(repository / path)
    except OSError as exc:
        _put_back(repository, previous, done, staged)
        raise ExportError(f"{repository}: cannot be changed ({exc}); it is as it was") from exc


def _put_back(repository: Path, previous: Path, paths: Sequence[Path], staged: Path) -> None:
    for path in paths:
        if not (staged / path).exists():  # it was moved in
            _remove(repository / path)
        if (previous / path).exists():
            (previous / path).rename(repository / path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _prune(repository: Path, names: Sequence[str], kept: Sequence[int]) -> None:
    for name in names:
        for version, folder in reader.version_folders(repository, name).items():
            if version not in kept:
                shutil.rmtree(folder)
