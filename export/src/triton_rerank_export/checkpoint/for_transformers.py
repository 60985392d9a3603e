"""A checkpoint's folder as the installed transformers reads it, or with what it makes of it.

Where transformers 5 wrote it, 4 reads a folder of links to its files. Of the vocabulary of one from before
tokenizer.json transformers makes that file.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triton_rerank_export.checkpoint.facts import CONFIG, TOKENIZER, TOKENIZER_CONFIG
from triton_rerank_export.checkpoint.json_files import read_object_if_there

VOCABULARY = "vocab.txt"  # of WordPiece


def with_tokenizer(folder: Path, work: Path) -> Path:
    """A checkpoint's folder with tokenizer.json.

    Args:
        folder: checkpoint folder.
        work: scratch folder.

    Returns:
        The folder itself if it has one, or no vocabulary; else a folder of the same name with links to its files,
        and beside them the one that transformers makes of them.

    Raises:
        ExportError: transformers makes no fast tokenizer of them.
    """
    if (folder / TOKENIZER).is_file() or not (folder / VOCABULARY).is_file():
        return folder
    from triton_rerank_export.gate.reference import load_tokenizer

    tokenizer = load_tokenizer(folder).backend_tokenizer
    completed = Path(tempfile.mkdtemp(dir=work)) / folder.name
    completed.mkdir()
    link_files(folder, completed)
    tokenizer.save(str(completed / TOKENIZER))
    return completed


def link_files(folder: Path, target: Path) -> None:
    """Put links to the files of a folder into another one."""
    for path in folder.iterdir():
        (target / path.name).symlink_to(path.resolve())


_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # transformers 5's name of it


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """The folder itself, or one of links to its files with another tokenizer_config.json.

    Args:
        folder: checkpoint folder.
    """
    config = read_object_if_there(folder, TOKENIZER_CONFIG)
    translated = _translated(config)
    if translated == config:
        yield folder
        return
    with tempfile.TemporaryDirectory() as view:
        link_files(folder, Path(view))
        (Path(view) / TOKENIZER_CONFIG).unlink()
        (Path(view) / TOKENIZER_CONFIG).write_text(json.dumps(translated), encoding="utf-8")
        yield Path(view)


def restated(folder: Path) -> dict[str, float | str]:
    """What transformers 4 reads otherwise in a config.json than 5, in words that both take alike.

    The base of rotary positions: 4 does not read where 5 wrote it. The GELU of Gemma: its makers' first files say
    "gelu" and mean the approximation by tanh that it was trained with; 5 knows that, 4 does not.

    Args:
        folder: checkpoint folder.

    Returns:
        What is to be set among config.json's values; nothing where both read the same.
    """
    config = read_object_if_there(folder, CONFIG)
    if version("transformers").partition(".")[0] != "4":
        return {}
    values: dict[str, float | str] = {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_theta") is not None and "rope_theta" not in config:
        values["rope_theta"] = float(rope["rope_theta"])
    if config.get("model_type") == "gemma" and config.get("hidden_act") == "gelu":
        values["hidden_act"] = "gelu_pytorch_tanh"
    return values


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
