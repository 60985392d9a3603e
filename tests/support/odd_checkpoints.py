"""Checkpoints as people save them: a tiny one with one thing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
)

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_LENGTH = 128


def copy(
    source: Path, folder: Path, *, config: Mapping[str, Any] | None = None, tokenizer: Mapping[str, Any] | None = None
) -> Path:
    """A copy with keys of config.json and of tokenizer_config.json set; None takes a key away."""
    shutil.copytree(source, folder)
    edit(folder / "config.json", **(config or {}))
    edit(folder / "tokenizer_config.json", **(tokenizer or {}))
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def edit_weights(folder: Path, change: Any, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Hand the weights to ``change``, which alters them in place, and save them; metadata ``{}`` saves none."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"} if metadata is None else dict(metadata) or None)
    return folder


def in_parts(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Saved in several files and another dtype, with an older file left beside them."""
    shutil.copytree(source, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).to(dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "pytorch_model.bin").write_bytes(b"an older form")
    return folder


def as_a_hub_cache(source: Path, folder: Path) -> Path:
    """A snapshot of links to blobs, as huggingface_hub keeps it."""
    snapshot = folder / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copyfile(path, folder / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    return snapshot


def generic_tokenizer(source: Path, folder: Path) -> Path:
    """The tokenizer saved again by the class that knows no model."""
    shutil.copytree(source, folder)
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=_LENGTH, **special)
    for name in ("vocab.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    fast.save_pretrained(folder)
    return folder


def roberta(folder: Path, tokenizer_of: Path | None = None) -> Path:
    """RoBERTa with byte-level BPE and its doubled separator, or with the tokenizer of another checkpoint."""
    fast = RobertaTokenizerFast(tokenizer_object=_bytes(), model_max_length=_LENGTH)
    size = len(fast)
    if tokenizer_of is not None:
        size = json.loads((tokenizer_of / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = RobertaConfig(
        vocab_size=size,
        max_position_embeddings=_LENGTH + 2,
        num_labels=1,
        initializer_range=0.2,
        type_vocab_size=1,
        pad_token_id=1 if tokenizer_of is None else 0,
        **_SHAPE,
    )
    torch.manual_seed(3)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    if tokenizer_of is None:
        fast.save_pretrained(folder)
    else:
        _copy_tokenizer(tokenizer_of, folder)
    return folder


def bert_with_another_padding_id(xlmr: Path, folder: Path) -> Path:
    """A BERT body that says padding is 0, with the tokenizer of XLM-R, which says 1."""
    vocabulary = json.loads((xlmr / "config.json").read_text())["vocab_size"]
    config = BertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=_LENGTH,
        num_labels=1,
        initializer_range=0.2,
        pad_token_id=0,
        **_SHAPE,
    )
    torch.manual_seed(3)
    BertForSequenceClassification(config).save_pretrained(folder)
    _copy_tokenizer(xlmr, folder)
    return folder


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if "token" in path.name or path.name == "vocab.txt":
            shutil.copyfile(path, folder / path.name)


def _bytes() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer
