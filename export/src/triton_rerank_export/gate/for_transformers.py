"""A checkpoint's folder as transformers 4 reads it, where transformers 5 wrote it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triton_rerank_export.checkpoint.facts import CONFIG, TOKENIZER_CONFIG
from triton_rerank_export.checkpoint.json_files import read_object_if_there

_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # transformers 5's name of it


@contextlib.contextmanager
def readable(folder: Path, label: str) -> Iterator[Path]:
    """The folder itself, or one of links to its files with another tokenizer_config.json.

    Args:
        folder: checkpoint folder.
        label: what the checkpoint is called in a message.
    """
    config = read_object_if_there(folder / TOKENIZER_CONFIG, label)
    translated = _translated(config)
    if translated == config:
        yield folder
        return
    with tempfile.TemporaryDirectory() as view:
        for path in folder.iterdir():
            (Path(view) / path.name).symlink_to(path.resolve())
        (Path(view) / TOKENIZER_CONFIG).unlink()
        (Path(view) / TOKENIZER_CONFIG).write_text(json.dumps(translated), encoding="utf-8")
        yield Path(view)


def rotation(folder: Path, label: str) -> dict[str, float]:
    """The base of rotary positions, as transformers 4 calls it: it does not read where transformers 5 wrote it.

    Args:
        folder: checkpoint folder.
        label: what the checkpoint is called in a message.

    Returns:
        What is to be added to config.json's values; nothing where both read the same.
    """
    config = read_object_if_there(folder / CONFIG, label)
    rope = config.get("rope_parameters")
    base = rope.get("rope_theta") if isinstance(rope, dict) else None
    if base is None or "rope_theta" in config or version("transformers").partition(".")[0] != "4":
        return {}
    return {"rope_theta": float(base)}


def _translated(config: Mapping[str, Any]) -> dict[str, Any]:
    translated = dict(config)
    stated = config.get("tokenizer_class")
    if isinstance(stated, str) and stated in _CLASSES:
        translated["tokenizer_class"] = _CLASSES[stated]
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):
        del translated["extra_special_tokens"]
        older = config.get("additional_special_tokens")
        translated["additional_special_tokens"] = [*(older if isinstance(older, list) else []), *extra]
    return translated
