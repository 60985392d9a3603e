"""manifest.json in each version folder of the ensemble: what was built, from what, and how it compared.

No dates and no paths of the machine: exporting twice gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triton_rerank import repository as reader
from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_export.digest import sha256
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate.parity import ParityReport
from triton_rerank_export.repository.triton_config import ServedModel

_TOOLS = ("torch", "transformers", "sentence-transformers", "onnx", "onnxruntime", "tokenizers", "triton-rerank-export")
_SHARES = ("kendall_tau", "top1_kept", "clear_tau", "clear_top1", "top10_overlap")


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        model: what the configs were made from; its source, revision and precision among it.
        files: path inside the repository -> sha256.
        tools: package -> version.
        parity: figures of the comparison with PyTorch.
        canary: ``query`` and ``documents``, best first; a server is ready when it orders them so.
        notes: what the user should know of this export, a sentence each.
    """

    model: ServedModel
    files: dict[str, str]
    tools: dict[str, str]
    parity: dict[str, float]
    canary: dict[str, Any]
    notes: tuple[str, ...] = ()

    def same_export(self, other: Manifest) -> bool:
        """True if both describe the same files and configs, whatever their version numbers."""
        return self._without_version() == other._without_version()

    def numbered(self, version: int) -> Manifest:
        """The same export under another version number."""
        files = {}
        for name, digest in self.files.items():
            folder, _, *rest = Path(name).parts
            files[str(Path(folder, str(version), *rest))] = digest
        return dataclasses.replace(self, model=dataclasses.replace(self.model, version=version), files=files)

    def _without_version(self) -> tuple[ServedModel, dict[str, str]]:
        files = {f"{Path(name).parts[0]}/{Path(name).name}": digest for name, digest in self.files.items()}
        return dataclasses.replace(self.model, version=0), files


def build_manifest(repository: Path, model: ServedModel, report: ParityReport, notes: Sequence[str]) -> Manifest:
    """Describe the version folders that were just written."""
    return Manifest(
        model=model,
        files={str(path.relative_to(repository)): sha256(path) for path in version_files(repository, model)},
        tools={tool: version(tool) for tool in _TOOLS},
        parity=parity_figures(report),
        canary={"query": report.canary.query, "documents": list(report.canary.documents)},
        notes=tuple(notes),
    )


def parity_figures(report: ParityReport) -> dict[str, float]:
    """What the manifest keeps of the comparison, rounded so that it is the same on every machine."""
    return {
        "pairs": report.pairs,
        "max_logit_difference": float(f"{report.max_logit_difference:.2g}"),
        **{name: round(float(getattr(report, name)), 4) for name in _SHARES},
        **({"largest_activation": float(f"{report.largest_activation:.3g}")} if report.largest_activation else {}),
        **({} if report.peer_difference is None else {"peer_difference": round(report.peer_difference, 5)}),
    }


def version_folders(repository: Path, model: ServedModel) -> list[Path]:
    """The folder of this version in each of the model's three folders; the ensemble's last."""
    return [repository / name / str(model.version) for name in model.folders]


def next_version(repository: Path, model: ServedModel) -> int:
    """One more than the highest number in use, finished or left over."""
    used = (version for name in model.folders for version in reader.version_folders(repository, name))
    return max(used, default=0) + 1


def version_files(repository: Path, model: ServedModel) -> list[Path]:
    """All files of a version but its manifest, sorted."""
    files = (path for folder in version_folders(repository, model) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name != MANIFEST_FILE)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write JSON, keys sorted."""
    path.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read it back.

    Raises:
        ExportError: not there, or not of this form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        notes = tuple(content["notes"])
        fields = {"native": True, "scheduling": "executions", **content["model"]}  # older ones do not say
        model = ServedModel(**{**fields, "length_ladder": tuple(fields.get("length_ladder", ()))})
        return Manifest(**{**content, "model": model, "notes": notes})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ExportError(f"{path}: not a manifest of this version ({exc!r}); export the model again") from exc
