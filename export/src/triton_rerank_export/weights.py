"""Which files of a checkpoint hold its weights, and that they are there whole. Reads no weights."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from triton_rerank_export.errors import ExportError

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")  # the order in which transformers looks
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx", ".gguf")


def pick_weights(names: Collection[str], *, label: str, allow_pickle: bool) -> str:
    """Name the file that leads to the weights: the weights themselves, or the index of their parts.

    Args:
        names: files of the checkpoint.
        label: what the checkpoint is called in a message.
        allow_pickle: a pickle is taken where there are no safetensors.

    Raises:
        ExportError: there is none that may be read; says what was found.
    """
    usable = _first(_SAFETENSORS, names)
    if usable is not None:
        return usable
    pickle = _first(_PICKLES, names)
    if pickle is None:
        found = ", ".join(sorted(name for name in names if name.endswith(_SUFFIXES))) or "no weights"
        raise ExportError(f"{label}: no {_SAFETENSORS[0]}, but {found}; model.save_pretrained(folder) writes one")
    if not allow_pickle:
        raise ExportError(
            f"{label}: its weights are {pickle}, a pickle, which can run code when it is read; convert it with "
            "model.save_pretrained(folder, safe_serialization=True), or pass --allow-pickle if you trust its authors"
        )
    return pickle


def parts(weights: Path) -> list[str]:
    """Names of all files that hold weights: one, or those that an index names.

    Raises:
        ExportError: the index cannot be read.
    """
    if weights.suffix != ".json":
        return [weights.name]
    try:
        return sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ExportError(f"{weights}: not an index of weights ({exc!r}); {_anew(weights)}") from exc


def check_weights(folder: Path, *, label: str, allow_pickle: bool) -> None:
    """Check that a folder has weights that may be read, in full.

    Raises:
        ExportError: a file is missing, is cut off, or is a pickle that was not asked for.
    """
    names = {path.name for path in folder.iterdir()}
    for part in parts(folder / pick_weights(names, label=label, allow_pickle=allow_pickle)):
        _check_whole(folder / part, label)


def _check_whole(path: Path, label: str) -> None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ExportError(f"{label}: {path.name} is missing, though the index names it; get the checkpoint anew")
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="numpy"):  # holds the header against the file's length
            pass
    except SafetensorError as exc:
        raise ExportError(f"{label}: {path.name} is not whole ({exc}); {_anew(path)}") from exc


def _first(candidates: Collection[str], names: Collection[str]) -> str | None:
    return next((name for name in candidates if name in names), None)


def _anew(path: Path) -> str:
    return f"delete {path.resolve()} and get it anew"  # in the hub's cache the path is a link to the file itself
