"""Looks into a repository: what is there, and everything that would make Triton serve something else than that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from triton_rerank import ConfigurationError
from triton_rerank import repository as reader
from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_export.digest import sha256
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.manifest import Manifest, version_files, version_folders
from triton_rerank_export.repository.replacement import working_names
from triton_rerank_export.repository.settings import listed
from triton_rerank_export.repository.store import active_manifest, active_version, installed_versions
from triton_rerank_export.repository.triton_config import ServedModel


def check_repository(repository: Path) -> list[str]:
    """Hold every file against the manifests, and every config against the data it was made from.

    Args:
        repository: model repository.

    Returns:
        Names of the models that are in order.

    Raises:
        ExportError: lists every fault found, each with the file it is in.
    """
    names = reader.exported_models(repository)
    if not names:
        raise ExportError(f"{repository}: no model with a {MANIFEST_FILE}; `make export MODEL=…` builds one")
    faults = [fault for name in names for fault in _model_faults(repository, name)]
    if faults:
        raise ExportError(f"{repository}: {len(faults)} faults\n  " + "\n  ".join(faults))
    return names


def version_is_whole(repository: Path, manifest: Manifest) -> bool:
    """True if every file of an installed version is what its manifest says."""
    return not list(_version_faults(repository, manifest))


def holding(repository: Path, manifest: Manifest) -> Manifest | None:
    """The active version of a model, if it is this very export and whole; None otherwise.

    Raises:
        ExportError: a manifest or the config cannot be read.
    """
    active = active_manifest(repository, manifest.model.name)
    same = active is not None and active.same_export(manifest) and version_is_whole(repository, active)
    return active if same else None


def _model_faults(repository: Path, name: str) -> list[str]:
    try:
        versions, active = installed_versions(repository, name), active_version(repository, name)
    except ExportError as exc:
        return [str(exc)]
    for version, manifest in versions.items():
        if (manifest.model.name, manifest.model.version) != (name, version):
            belongs = f"{manifest.model.name} version {manifest.model.version}"
            return [f"{name}/{version}/{MANIFEST_FILE}: it is the manifest of {belongs}; export the model again"]
    if active not in versions:
        return [f"{name}/config.pbtxt: it serves version {active}, but there are {sorted(versions)}; activate one"]
    return [
        *(fault for manifest in versions.values() for fault in _version_faults(repository, manifest)),
        *_config_faults(repository, versions[active].model),
        *_warmup_faults(repository, versions[active].model),
    ]


def _version_faults(repository: Path, manifest: Manifest) -> Iterator[str]:
    present = {str(path.relative_to(repository)): path for path in version_files(repository, manifest.model)}
    for name, digest in manifest.files.items():
        if name not in present:
            yield f"{name}: missing; export the model again"
        elif sha256(present[name]) != digest:
            yield f"{name}: its sha256 is not the manifest's; it belongs to another export, or was edited"
    for name in sorted(set(present) - set(manifest.files)):
        yield f"{name}: no export wrote it; remove it"
    yield from _graph_faults(repository, manifest.model)


def _config_faults(repository: Path, model: ServedModel) -> list[str]:
    faults = []
    for name in model.folders:
        try:
            found = reader.read_config(repository, name)
        except ConfigurationError as exc:
            faults.append(str(exc))
            continue
        if {step.model_name for step in found.ensemble_scheduling.step} & set(working_names(name).values()):
            faults.append(
                f"{name}/config.pbtxt: its steps have the names that they are lent while a model is replaced; an "
                f"export or activation of it runs, or was stopped: "
                f"`triton-rerank-export activate --model {name}` finishes it"
            )
            continue
        # It may name more versions than are there, if an export was killed meanwhile.
        listed_ones = {*found.version_policy.specific.versions} & {*reader.version_folders(repository, name)}
        expected = model.configs(sorted(listed_ones))[name]
        stated = {field.name for config in (found, expected) for field, _ in config.ListFields()}
        if fields := sorted(each for each in stated if getattr(found, each) != getattr(expected, each)):
            faults.append(
                f"{name}/config.pbtxt: not what the manifest gives, in {', '.join(fields)}; it was edited, or belongs "
                "to another export; export the model again"
            )
    return faults


def _warmup_faults(repository: Path, model: ServedModel) -> list[str]:
    folder = repository / model.encoder_name / "warmup"
    return [
        f"{model.encoder_name}/warmup/{name}: missing or edited; export the model again"
        for name, content in model.warmup_files.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != content
    ]


def _graph_faults(repository: Path, model: ServedModel) -> list[str]:
    import onnx
    from google.protobuf.message import DecodeError

    path = repository / model.encoder_name / str(model.version) / "model.onnx"
    if model.engine == "tensorrt" or not path.is_file():
        return []
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as exc:
        return [f"{path.relative_to(repository)}: not an ONNX file ({exc})"]
    found, expected = sorted(node.name for node in graph.input), sorted(model.tensors)
    return [] if found == expected else [f"{path.relative_to(repository)}: its inputs are {found}, not {expected}"]


HEADER = ("model", "version", "active", "precision", "engine", "MB", "licence", "source", "settings")


def rows(repository: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """All versions of all models, by name and number; a model that cannot be read hides no other.

    Args:
        repository: model repository.

    Returns:
        Cells in the order of `HEADER`, "yes" where a version is active, "unknown" where no licence was found, settings
        that are not the default; and a sentence for each model whose manifest or config cannot be read.

    Raises:
        ExportError: there is no model that export put there.
    """
    names = reader.exported_models(repository)
    if not names:
        there = "no model of triton-rerank-export" if repository.is_dir() else "no such folder"
        raise ExportError(f"{repository}: {there}; `make export MODEL=…` builds one")
    found, faults = [], []
    for name in names:
        try:
            active = active_version(repository, name)
            versions = installed_versions(repository, name).items()
            found += [_row(repository, manifest, version == active) for version, manifest in versions]
        except ExportError as exc:
            faults.append(str(exc))
    return found, faults


def _row(repository: Path, manifest: Manifest, active: bool) -> tuple[str, ...]:
    model = manifest.model
    files = (path for folder in version_folders(repository, model) for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files) / 1e6
    form = [f"graph {model.graph}"] * (model.graph != "padded") + ["native"] * model.native
    source = f"{model.source}@{model.revision[:7]}" if model.revision else model.source
    return (
        *(model.name, str(model.version), "yes" if active else "", model.precision, model.engine),
        *(f"{size:.0f}" if size >= 1 else f"{size:.1f}", model.licence or "unknown", source),
        ", ".join(filter(None, [*form, listed(model, changed=True)])),
    )
