"""What the small files of a checkpoint say of it, or why such a model cannot be served. Reads no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank.types import Activation
from triton_rerank_export.errors import ExportError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class _Family:
    """What config.json leaves to the model's class.

    Attributes:
        token_type_ids: the model reads segment ids.
        pad_token_id: unless config.json states it.
        positions_after_padding: position ids start behind the padding's id instead of at 0.
    """

    token_type_ids: bool
    pad_token_id: int
    positions_after_padding: bool


_FAMILIES = {
    "BertForSequenceClassification": _Family(True, 0, False),
    "XLMRobertaForSequenceClassification": _Family(False, 1, True),
    "RobertaForSequenceClassification": _Family(False, 1, True),
}
_OTHER_KINDS = (  # ends of an architecture's name, and what such a model is
    (("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"), "a causal LM"),
    (("ForMaskedLM",), "a masked LM, which has no classifier yet"),
    (("ForSequenceClassification",), "a classifier of another architecture"),
    (("Model",), "an embedding model"),
)


@dataclass(frozen=True)
class Facts:
    """A cross-encoder with one label.

    Attributes:
        architecture: the model's class.
        token_type_ids: the model reads segment ids.
        max_length: tokens of the longest pair that the model can read.
        pad_token_id: id that fills a row up.
        activation: how the checkpoint turns a logit into a score.
        n_heads: attention heads.
        hidden_size: width.
    """

    architecture: str
    token_type_ids: bool
    max_length: int
    pad_token_id: int
    activation: Activation
    n_heads: int
    hidden_size: int


def read_facts(folder: Path, label: str) -> Facts:
    """Read config.json and tokenizer_config.json.

    Args:
        folder: Hugging Face checkpoint folder.
        label: what the checkpoint is called in a message.

    Raises:
        ExportError: a file cannot be read, or the model is of a kind that is not supported; says what was found.
    """
    config = _read_json(folder / CONFIG)
    architecture = _architecture(config, label)
    family = _FAMILIES[architecture]
    _check_labels(config, label)
    _check_positions(config, label)
    pad = family.pad_token_id if config.get("pad_token_id") is None else _integer(config, "pad_token_id", label)
    unused = pad + 1 if family.positions_after_padding else 0
    limit = _integer(config, "max_position_embeddings", label) - unused
    return Facts(
        architecture=architecture,
        token_type_ids=family.token_type_ids,
        max_length=min(limit, _tokenizer_limit(folder, limit)),
        pad_token_id=pad,
        activation=_activation(config, label),
        n_heads=_integer(config, "num_attention_heads", label),
        hidden_size=_integer(config, "hidden_size", label),
    )


def _architecture(config: dict[str, Any], label: str) -> str:
    found = [str(name) for name in config.get("architectures") or ()]
    if len(found) == 1 and found[0] in _FAMILIES:
        return found[0]
    kind = next((f", {kind}" for ends, kind in _OTHER_KINDS if found and found[-1].endswith(ends)), "")
    raise ExportError(
        f"{label}: its architecture is {', '.join(found) or 'not stated in config.json'}{kind}; supported are "
        f"cross-encoders with one label: {', '.join(_FAMILIES)}"
    )


def _check_labels(config: dict[str, Any], label: str) -> None:
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)  # 2 is transformers' default
    if labels != 1:
        raise ExportError(f"{label}: the classifier has {labels} labels; a reranker has 1 (num_labels in config.json)")


def _check_positions(config: dict[str, Any], label: str) -> None:
    kind = config.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise ExportError(f"{label}: its position_embedding_type is {kind}; supported is absolute")


def _tokenizer_limit(folder: Path, default: int) -> int:
    path = folder / TOKENIZER_CONFIG
    stated = _read_json(path).get("model_max_length") if path.is_file() else None
    return int(stated) if isinstance(stated, int | float) and 0 < stated < 1e6 else default


def _activation(config: dict[str, Any], label: str) -> Activation:
    """Sentence-transformers writes it into config.json; without it, one label means sigmoid."""
    stated = (config.get("sentence_transformers") or {}).get("activation_fn")
    stated = stated or config.get("sbert_ce_default_activation_function") or "torch.nn.modules.activation.Sigmoid"
    kind = str(stated).rsplit(".", 1)[-1]
    if kind == "Identity":
        return "identity"
    if kind == "Sigmoid":
        return "sigmoid"
    raise ExportError(f"{label}: its activation is {stated}; supported are Identity and Sigmoid")


def _integer(config: dict[str, Any], key: str, label: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 0:
        raise ExportError(f"{label}: {key} in config.json is {value!r}; a number from 0 was expected")
    return value


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
