"""What is in a model repository, a row for each version."""

from __future__ import annotations

from pathlib import Path

from triton_rerank.repository import exported_models
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.manifest import Manifest, version_folders
from triton_rerank_export.repository.settings import listed
from triton_rerank_export.repository.store import active_version, installed_versions
from triton_rerank_export.repository.triton_config import ServedModel

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
    names = exported_models(repository)
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
    source = f"{model.source}@{model.revision[:7]}" if model.revision else model.source
    return (
        *(model.name, str(model.version), "yes" if active else "", model.precision, model.engine),
        *(f"{size:.0f}" if size >= 1 else f"{size:.1f}", model.licence or "unknown", source),
        ", ".join(filter(None, [_form(model), listed(model, changed=True)])),
    )


def _form(model: ServedModel) -> str:
    """What was chosen at export and is not the default."""
    return ", ".join([f"graph {model.graph}"] * (model.graph != "padded") + ["native"] * model.native)
