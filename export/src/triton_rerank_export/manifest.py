"""manifest.json in the ensemble's folder: what was built, from what, with which files, and how it compared.

No dates and no paths of the machine: exporting twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_export.errors import ExportError
from triton_rerank_export.parity import ParityReport
from triton_rerank_export.triton_config import ServedModel

_TOOLS = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime", "tokenizers", "triton-rerank-export")


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        model: what the configs were made from.
        files: path inside the repository -> sha256.
        versions: tool -> version.
        parity: figures of the comparison with PyTorch.
        canary: ``query`` and ``documents``, best first; a server is ready when it orders them so.
    """

    model: ServedModel
    files: dict[str, str]
    versions: dict[str, str]
    parity: dict[str, float]
    canary: dict[str, Any]


def build_manifest(repository: Path, model: ServedModel, report: ParityReport) -> Manifest:
    """Describe the three model folders that were just written."""
    return Manifest(
        model=model,
        files={str(path.relative_to(repository)): sha256(path) for path in model_files(repository, model)},
        versions={tool: version(tool) for tool in _TOOLS},
        parity={
            "pairs": report.pairs,
            "max_logit_difference": float(f"{report.max_logit_difference:.2g}"),
            "kendall_tau": round(report.kendall_tau, 4),
            "top1_kept": round(report.top1_kept, 4),
        },
        canary={"query": report.canary.query, "documents": list(report.canary.documents)},
    )


def model_files(repository: Path, model: ServedModel) -> list[Path]:
    """All files of a model's three folders but the manifest, sorted."""
    files = (path for name in model.configs() for path in (repository / name).rglob("*") if path.is_file())
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
        return Manifest(**{**content, "model": ServedModel(**content["model"])})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ExportError(f"{path}: not a manifest of this version ({exc!r}); export the model again") from exc


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
