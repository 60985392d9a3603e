"""Variants of a model repository: links to the weights, and the three configs written anew with a change."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from triton_rerank.contract import CONFIG_FILE, ENCODER_SUFFIX, TOKENIZER_SUFFIX
from triton_rerank.repository import read_config

_SUFFIXES = {"ensemble": "", "tokenizer": TOKENIZER_SUFFIX, "encoder": ENCODER_SUFFIX}


@dataclass
class Configs:
    """``ModelConfig`` messages of one model, to be changed in place."""

    ensemble: Any
    tokenizer: Any
    encoder: Any

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self))


Change = Callable[[Configs], None]


def read_configs(model_repository: Path, model: str) -> Configs:
    """Parse the configs of a model; raises ConfigurationError where one is missing, or is not one."""
    return Configs(**{step: read_config(model_repository, model + suffix) for step, suffix in _SUFFIXES.items()})


@contextmanager
def variant(model_repository: Path, model: str, change: Change) -> Iterator[Path]:
    """A temporary repository that links to one model, but for its configs, which are changed.

    Raises:
        ConfigurationError: a config is missing, or not one.
    """
    configs = read_configs(model_repository, model)
    change(configs)
    with tempfile.TemporaryDirectory(prefix="triton-rerank-bench-") as folder:
        for config in configs:
            source, copy = model_repository.resolve() / config.name, Path(folder) / config.name
            copy.mkdir()
            for path in source.iterdir():
                if path.name != CONFIG_FILE:
                    (copy / path.name).symlink_to(path)
            (copy / CONFIG_FILE).write_text(_text(source, config), encoding="utf-8")
        yield Path(folder)


def clear_queue_bounds(configs: Configs) -> None:
    """Let requests wait in any number and for any time."""
    for config in configs:
        if config.HasField("dynamic_batching"):
            config.dynamic_batching.ClearField("default_queue_policy")


def config_diff(model_repository: Path, model: str, change: Change) -> str:
    """What a change does to the files, as a unified diff that ``patch -p0`` takes inside the repository.

    Fields in another order than Triton's, and comments below the first line, are not shown.
    """
    before, after = (read_configs(model_repository, model) for _ in range(2))
    change(after)
    lines: list[str] = []
    for old, new in zip(before, after, strict=True):
        name = f"{old.name}/{CONFIG_FILE}"
        was, is_now = (_text(model_repository / old.name, each).splitlines(keepends=True) for each in (old, new))
        lines += difflib.unified_diff(was, is_now, name, name)
    return "".join(lines)


def _text(folder: Path, config: Any) -> str:
    """The message as text, under the comments that the file begins with, so that a diff has the file's own lines."""
    old = (folder / CONFIG_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    comments = old[: next((i for i, line in enumerate(old) if not line.startswith("#")), len(old))]
    return "".join(comments) + str(text_format.MessageToString(config))
