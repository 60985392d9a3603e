"""A checkpoint folder, looked at before anything is built from it: what it is, or why it cannot be served."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank.types import Activation
from triton_rerank_export.catalogue import CATALOGUE
from triton_rerank_export.errors import ExportError

# architecture -> (the model reads segment ids, position ids that are never used)
_ARCHITECTURES = {
    "BertForSequenceClassification": (True, 0),
    "XLMRobertaForSequenceClassification": (False, 2),  # positions start at padding_idx + 1 = 2
    "RobertaForSequenceClassification": (False, 2),
}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_DEFAULT_LONGEST = 1024  # tokens; a longer model is served up to here


@dataclass(frozen=True)
class Checkpoint:
    """A one-label cross-encoder on disk.

    Attributes:
        name: public model name.
        folder: Hugging Face checkpoint folder with safetensors and tokenizer.json.
        source: where it came from, for the config.
        token_type_ids: the model reads segment ids.
        max_length: longest pair in tokens.
        pad_token_id: id that fills a row up.
        activation: how the checkpoint turns a logit into a score.
        n_heads: attention heads, for fusion.
        hidden_size: width, for fusion.
    """

    name: str
    folder: Path
    source: str
    token_type_ids: bool
    max_length: int
    pad_token_id: int
    activation: Activation
    n_heads: int
    hidden_size: int


def resolve(model: str, work: Path, *, name: str | None = None) -> Checkpoint:
    """Find a model by its public name or its folder.

    Args:
        model: a name of the catalogue, or a checkpoint folder.
        work: scratch folder for checkpoints that have to be fetched.
        name: public name; by default the catalogue's or the folder's.

    Raises:
        ExportError: neither; or the checkpoint cannot be served.
    """
    entry = CATALOGUE.get(model)
    if entry is not None:
        folder = entry.fetch(Path(tempfile.mkdtemp(dir=work)) / entry.name)
        return read_checkpoint(folder, name=name or entry.name, source=entry.source)
    folder = Path(model)
    if not folder.is_dir():
        raise ExportError(
            f"model {model!r} is neither a known name ({', '.join(sorted(CATALOGUE))}) nor a checkpoint folder"
        )
    folder = folder.resolve()
    return read_checkpoint(folder, name=name or folder.name.lower(), source=f"local folder {folder.name}")


def read_checkpoint(folder: Path, *, name: str, source: str) -> Checkpoint:
    """Check that a folder holds a cross-encoder that can be served, and read its facts.

    Raises:
        ExportError: a file is missing, or the model is of a kind that is not supported; says what was found.
    """
    if not _NAME.fullmatch(name):
        raise ExportError(f"model name {name!r}: it must match {_NAME.pattern}; give another with --name")
    config = _read_json(folder / "config.json")
    segments, unused_positions = _architecture(folder, config)
    _check_one_label(folder, config)
    _check_files(folder)
    limit = int(config["max_position_embeddings"]) - unused_positions
    return Checkpoint(
        name=name,
        folder=folder,
        source=source,
        token_type_ids=segments,
        max_length=min(limit, _tokenizer_limit(folder, limit), _DEFAULT_LONGEST),
        pad_token_id=int(config.get("pad_token_id") or 0),
        activation=_activation(folder, config),
        n_heads=int(config["num_attention_heads"]),
        hidden_size=int(config["hidden_size"]),
    )


def _architecture(folder: Path, config: dict[str, Any]) -> tuple[bool, int]:
    found = config.get("architectures") or ["none"]
    if len(found) != 1 or found[0] not in _ARCHITECTURES:
        raise ExportError(
            f"{folder}: its architecture is {', '.join(found)}; supported are {', '.join(_ARCHITECTURES)}. A causal LM "
            "or an embedding model is no cross-encoder"
        )
    return _ARCHITECTURES[found[0]]


def _check_one_label(folder: Path, config: dict[str, Any]) -> None:
    labels = len(config.get("id2label") or {0: "", 1: ""})  # transformers' default is two
    if labels != 1:
        raise ExportError(f"{folder}: the classifier has {labels} labels; a reranker has 1 (num_labels in config.json)")


def _check_files(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise ExportError(
            f"{folder}: no tokenizer.json; make one with "
            "AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights"
        raise ExportError(
            f"{folder}: no *.safetensors, but {pickles}; a pickle can run code when it is read, so convert it with "
            "model.save_pretrained(folder, safe_serialization=True)"
        )


def _tokenizer_limit(folder: Path, default: int) -> int:
    path = folder / "tokenizer_config.json"
    stated = _read_json(path).get("model_max_length") if path.is_file() else None
    return int(stated) if isinstance(stated, int | float) and 0 < stated < 1e6 else default


def _activation(folder: Path, config: dict[str, Any]) -> Activation:
    """Sentence-transformers writes it into config.json; without it, one label means sigmoid."""
    stated = (config.get("sentence_transformers") or {}).get("activation_fn")
    stated = stated or config.get("sbert_ce_default_activation_function") or "torch.nn.modules.activation.Sigmoid"
    kind = str(stated).rsplit(".", 1)[-1]
    if kind == "Identity":
        return "identity"
    if kind == "Sigmoid":
        return "sigmoid"
    raise ExportError(f"{folder}: its activation is {stated}; supported are Identity and Sigmoid")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ExportError(f"{path.parent}: no {path.name}; it is not a Hugging Face checkpoint folder") from exc
    except (OSError, ValueError) as exc:
        raise ExportError(f"{path}: cannot be read ({exc})") from exc
    if not isinstance(content, dict):
        raise ExportError(f"{path}: a JSON object was expected, not {type(content).__name__}")
    return content
