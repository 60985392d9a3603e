"""Looks for everything that would make Triton serve something else than was exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triton_rerank import ConfigurationError
from triton_rerank.contract import MANIFEST_FILE
from triton_rerank.repository import exported_models, read_config, version_folders
from triton_rerank_export.digest import sha256
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.manifest import Manifest, version_files
from triton_rerank_export.repository.store import active_version, installed_versions
from triton_rerank_export.repository.triton_config import ServedModel
from triton_rerank_export.repository.warmup import warmup_files


def check_repository(repository: Path) -> list[str]:
    """Hold every file against the manifests, and every config against the data it was made from.

    Args:
        repository: model repository.

    Returns:
        Names of the models that are in order.

    Raises:
        ExportError: lists every fault found, each with the file it is in.
    """
    names = exported_models(repository)
    if not names:
        raise ExportError(f"{repository}: no model with a {MANIFEST_FILE}; `make export MODEL=…` builds one")
    faults = [fault for name in names for fault in _model_faults(repository, name)]
    if faults:
        raise ExportError(f"{repository}: {len(faults)} faults\n  " + "\n  ".join(faults))
    return names


def version_is_whole(repository: Path, manifest: Manifest) -> bool:
    """True if every file of an installed version is what its manifest says."""
    return not list(_version_faults(repository, manifest))


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
    for name in model.configs():
        try:
            found = read_config(repository, name)
        except ConfigurationError as exc:
            faults.append(str(exc))
            continue
        expected = model.configs(_listed(repository, found))[name]
        if found != expected:
            fields = ", ".join(sorted(_differing(found, expected)))
            faults.append(
                f"{name}/config.pbtxt: not what the manifest gives, in {fields}; it was edited, or belongs to another "
                "export; export the model again"
            )
    return faults


def _listed(repository: Path, config: Any) -> list[int]:
    """Versions that a config names and that are there; more than are installed, if an export was killed meanwhile."""
    return sorted(set(config.version_policy.specific.versions) & set(version_folders(repository, config.name)))


def _differing(found: Any, expected: Any) -> set[str]:
    names = {field.name for message in (found, expected) for field, _ in message.ListFields()}
    return {name for name in names if getattr(found, name) != getattr(expected, name)}


def _warmup_faults(repository: Path, model: ServedModel) -> list[str]:
    folder = repository / model.encoder_name / "warmup"
    return [
        f"{model.encoder_name}/warmup/{name}: missing or edited; export the model again"
        for name, content in warmup_files(model.warmup, ladder=model.ladder).items()
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
