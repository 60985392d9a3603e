"""The model repository on disk: versions side by side, made elsewhere and put in place so that it is never half.

A model is three folders, each with a folder per version. The steps hold every version that is kept ready; the
ensemble serves one, the **active** version, and names it to both steps. So a running server changes versions, forth
and back, by reloading the ensemble alone: all requests see one version, whole. And an export becomes active in one
step: the rename of the ensemble's config, when all that it names is there. A process that dies before or after leaves
folders that no config names, and the next one removes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_rerank import ConfigurationError
from triton_rerank import repository as reader
from triton_rerank.contract import CONFIG_FILE, MANIFEST_FILE
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository import replacement
from triton_rerank_export.repository.manifest import (
    Manifest,
    next_version,
    read_manifest,
    version_folders,
    write_manifest,
)
from triton_rerank_export.repository.settings import SETTINGS, shared_by_versions
from triton_rerank_export.repository.staging import locked, told
from triton_rerank_export.repository.triton_config import ServedModel, to_text
from triton_rerank_server import atomic

DEFAULT_KEEP_VERSIONS = 2  # the active one and the one before, to go back to
GRACE_S = 600.0  # that a server may take to notice a switch and load what it names; until then nothing is removed

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Installed:
    """What an installation left in the repository.

    Attributes:
        manifest: of the version that is active now.
        versions: that are there, ascending.
        left: which older versions went, and what should have gone and did not, a sentence each.
    """

    manifest: Manifest
    versions: list[int]
    left: tuple[str, ...] = ()


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


def active_manifest(repository: Path, name: str) -> Manifest | None:
    """That of the version that is served; None if the model, or that version, is not there.

    Raises:
        ExportError: its config or a manifest cannot be read.
    """
    versions = installed_versions(repository, name)
    return versions.get(active_version(repository, name)) if versions else None


def check_compatible(repository: Path, model: ServedModel) -> None:
    """A new version shares the steps' configs with those beside it.

    Raises:
        ExportError: it would need others; says which fields differ.
    """
    beside = installed_versions(repository, model.name)
    if not beside:
        return
    old, new = beside[max(beside)].model, dataclasses.replace(model, version=max(beside))
    free = _FREE_FIELDS | (set(SETTINGS) - shared_by_versions(model))
    fields = [
        f"{field.name} {getattr(old, field.name)!r} → {getattr(new, field.name)!r}"
        for field in dataclasses.fields(ServedModel)
        if field.name not in free and getattr(old, field.name) != getattr(new, field.name)
    ]
    if fields:
        raise ExportError(
            f"{repository}: {model.name} is there with other settings ({', '.join(fields)}), and versions of a model "
            "share these; replace it with --replace (REPLACE=1), or give this one another --name"
        )


# What may differ between versions, besides the settings. Not the activation: a client reads it once, when it begins.
# The graphs of both kinds of backend are alike, so the active version's config serves those beside it too.
_FREE_FIELDS = {"version", "source", "revision", "licence", "native"}


def lay_out(staged: Path, model: ServedModel, tokenizer: Path, graph_files: Sequence[Path]) -> None:
    """Write the version folders of a model, without the manifest.

    Args:
        staged: folder of the form of a repository, to write into.
        model: gives names and version.
        tokenizer: tokenizer.json; copied.
        graph_files: what the encoder's version folder holds; moved.
    """
    for folder in version_folders(staged, model):
        folder.mkdir(parents=True)
    shutil.copyfile(tokenizer, staged / model.tokenizer_name / str(model.version) / "tokenizer.json")
    for file in graph_files:
        shutil.move(file, staged / model.encoder_name / str(model.version) / file.name)


def install(staged: Path, repository: Path, manifest: Manifest, *, replace: bool, keep: int) -> Installed:
    """Put a staged version into a repository that is `locked`, and make it the active one.

    Args:
        staged: as `lay_out` left it.
        repository: model repository.
        manifest: of the staged version; it gets the next free number.
        replace: the model's folders are put in place of the old ones, with all their versions.
        keep: versions that stay, two at least: this one, and the one that was active. If that had been so for less
            than `GRACE_S`, all stay: which of them a server serves is not known.

    Raises:
        ExportError: versions of the model with other settings are there.
        OSError: it cannot be written; the version that was active still is, unless the message of `told` says else.
    """
    if not replace:
        check_compatible(repository, manifest.model)
    # A number is never used again: a server that loads one step after the other would mix two models of one number.
    began, manifest = manifest, manifest.numbered(next_version(repository, manifest.model))
    for before, after in zip(*(version_folders(staged, each.model) for each in (began, manifest)), strict=True):
        before.rename(after)  # another export may have taken the number that this one began with
    model = manifest.model
    write_manifest(staged / model.name / str(model.version) / MANIFEST_FILE, manifest)
    versions = set(installed_versions(repository, model.name))
    if versions and not replace:
        left = _add(staged, repository, model, versions, keep)
    else:
        write_configs(staged, model, [model.version], model.folders)
        replacement.put(staged, repository, model)
        left = ()
    return Installed(manifest, list(reader.manifest_files(repository, model.name)), left)


def activate(repository: Path, name: str, version: int | None = None, *, on_step: Progress = lambda _: None) -> int:
    """Make an installed version the one that the ensemble serves; the newest by default.

    Args:
        repository: model repository.
        name: public model name.
        version: of those that are there.
        on_step: called where another process has to be waited for.

    Returns:
        The version.

    Raises:
        ExportError: the model or the version is not there, or the repository cannot be written.
    """
    installed_version(repository, name, version)
    with told(repository), locked(repository, name, on_step) as repository:
        versions, chosen = installed_version(repository, name, version)
        model = versions[chosen].model
        ensemble, *steps = reversed(model.folders)
        write_configs(repository, _bridge(repository, model), list(versions), steps)
        write_configs(repository, model, [], [ensemble])
        write_configs(repository, model, list(versions), steps)
    return chosen


def write_configs(repository: Path, model: ServedModel, kept: Sequence[int], folders: Sequence[str]) -> None:
    """Write the config of each of these folders and, with the encoder's, its warm-up data; what is there already stays.

    Args:
        repository: or a folder of its form.
        model: what they are made from.
        kept: versions that the steps hold ready, besides the model's own.
        folders: public name and steps, in the order in which they are written.
    """
    configs = model.configs(kept)
    for folder in folders:
        if folder == model.encoder_name:
            for file, content in model.warmup_files.items():
                _write(repository / folder / "warmup" / file, content)
        _write(repository / folder / CONFIG_FILE, to_text(configs[folder]).encode())


def installed_version(repository: Path, name: str, version: int | None) -> tuple[dict[int, Manifest], int]:
    """All versions of a model, and one of them: that of this number, or for None the newest.

    Raises:
        ExportError: the model or the version is not there.
    """
    versions = installed_versions(repository, name)
    if not versions:
        raise ExportError(f"{repository}: no model {name!r} with a {MANIFEST_FILE}; `make export MODEL=…` builds one")
    chosen = max(versions) if version is None else version
    if chosen not in versions:
        raise ExportError(f"{repository}: {name} has the versions {sorted(versions)}, not {chosen}")
    return versions, chosen


def _add(staged: Path, repository: Path, model: ServedModel, there: set[int], keep: int) -> tuple[str, ...]:
    """Steps first, each config with the old versions and the new one; the ensemble's config is the switch."""
    active = active_version(repository, model.name)
    active_s = time.time() - (repository / model.name / CONFIG_FILE).stat().st_mtime
    ensemble, *steps = reversed(model.folders)
    before = {step: (repository / step / CONFIG_FILE).read_bytes() for step in steps}
    try:
        for step in steps:
            replacement.bring(staged / step / str(model.version), repository / step / str(model.version))
        write_configs(repository, _bridge(repository, model), sorted(there), steps)
        replacement.bring(staged / ensemble / str(model.version), repository / ensemble / str(model.version))
        write_configs(repository, model, [], [ensemble])
    except BaseException:
        if active_version(repository, model.name) == active:
            _take_back(repository, model, before)
        raise
    newest = sorted(there - {active}, reverse=True)[: max(0, keep - 2)]
    kept = {model.version, *({active} & there), *newest}
    # Any of these may be what a server serves that has not seen, or not loaded, what came since.
    spared = sorted(there - kept) if active_s < GRACE_S else []
    told = (
        f"version {version} stays: the change before this one was {max(0.0, active_s):.0f} s ago, and a server may not "
        f"have taken it yet; a change {GRACE_S:.0f} s from now or later removes it"
        for version in spared
    )
    return (*_prune(repository, model, sorted({*kept, *spared})), *told)


def _bridge(repository: Path, model: ServedModel) -> ServedModel:
    """For the steps until the ensemble is switched: Triton loads none whose batches are larger than its steps'."""
    with contextlib.suppress(ConfigurationError):  # nothing is served then
        ensemble = reader.read_config(repository, model.name)
        return dataclasses.replace(model, max_batch_size=max(model.max_batch_size, ensemble.max_batch_size))
    return model


def _take_back(repository: Path, model: ServedModel, configs: dict[str, bytes]) -> None:
    """Undo an addition that did not become active. Configs first: one that names a missing version cannot be loaded."""
    with contextlib.suppress(OSError):  # then the folders stay, unused, until the next export
        for step, content in configs.items():
            _write(repository / step / CONFIG_FILE, content)
        for folder in reversed(version_folders(repository, model)):
            if folder.exists():
                replacement.remove(folder)


def _prune(repository: Path, model: ServedModel, kept: Sequence[int]) -> tuple[str, ...]:
    """Remove what is over, as far as that can be done; what cannot is said, and tried again by the next export."""
    ensemble, *steps = reversed(model.folders)
    try:
        write_configs(repository, model, kept, steps)
    except OSError as exc:
        return (f"older versions could not be removed ({exc}); the next export tries again",)
    left: dict[int, str] = {}
    for name in (ensemble, *steps):
        for version, folder in reader.version_folders(repository, name).items():
            if version not in kept:
                left.setdefault(version, f"version {version} was removed (--keep-versions)")
                try:
                    replacement.remove(folder)
                except OSError as exc:
                    left[version] = f"version {version} could not be removed ({exc}); the next export tries again"
    return tuple(left.values())


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        atomic.write_file(path, content)
