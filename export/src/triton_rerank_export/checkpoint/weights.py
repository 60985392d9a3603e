"""Which files of a checkpoint hold its weights, and that they are there whole. Reads no weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from triton_rerank_export.checkpoint.facts import Facts
from triton_rerank_export.checkpoint.json_files import check_no_pointer, read_object
from triton_rerank_export.checkpoint.saved.modules import MODULES
from triton_rerank_export.checkpoint.saved.modules import WEIGHTS as MODULE_WEIGHTS
from triton_rerank_export.errors import ExportError, cause

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")  # the order in which transformers looks
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx", ".gguf")


def pick_weights(names: Collection[str], *, allow_pickle: bool) -> str:
    """Name the file that leads to the weights: the weights themselves, or the index of their parts.

    Args:
        names: files of the checkpoint.
        allow_pickle: a pickle is taken where there are no safetensors.

    Raises:
        ExportError: there is none that may be read; says what was found.
    """
    usable, pickle = (next((name for name in kind if name in names), None) for kind in (_SAFETENSORS, _PICKLES))
    if usable is not None:
        return usable
    if pickle is None:
        others = ", ".join(sorted(name for name in names if name.endswith(_SUFFIXES)))
        found = f"but {others}" if others else "and no other weights"
        raise ExportError(f"no {_SAFETENSORS[0]}, {found}; model.save_pretrained(folder) writes one")
    if not allow_pickle:
        raise ExportError(
            f"its weights are {pickle}, a pickle, which can run code when it is read; convert it with "
            "model.save_pretrained(folder, safe_serialization=True), or pass --allow-pickle if you trust its authors"
        )
    return pickle


def parts(weights: Path) -> list[str]:
    """Names of all files that hold weights: one, or those that an index names.

    Args:
        weights: from `pick_weights`.

    Raises:
        ExportError: the index cannot be read, or names files elsewhere.
    """
    if weights.suffix != ".json":
        return [weights.name]
    index = read_object(weights.parent, weights.name).get("weight_map")
    names = list(index.values()) if isinstance(index, dict) else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ExportError(f"{weights.name} is not an index of weights (weight_map); {_anew(weights)}")
    return sorted(set(names))


def check_weights(folder: Path, facts: Facts, *, allow_pickle: bool) -> None:
    """Check that a folder has weights that may be read, in full, and of the size that config.json states.

    Raises:
        ExportError: a file is missing, is cut off, is a pickle that was not asked for, or a table has another size.
    """
    shapes: dict[str, list[int]] = {}
    for part in parts(folder / pick_weights(list_names(folder), allow_pickle=allow_pickle)):
        shapes |= _shapes(folder, part, "the index names it")
    if shapes:  # a pickle's are known once it is read
        _check_shapes(shapes, facts)
    for layer in facts.modules.layers if facts.modules else ():
        name = f"{layer.path}/{MODULE_WEIGHTS}"
        found = _shapes(folder, name, f"{MODULES} names {layer.path}")
        if found != layer.weights:
            raise ExportError(
                f"{name} holds {found}, its config states {layer.weights}; config and weights do not belong together"
            )


def list_names(folder: Path) -> set[str]:
    """Names of what a folder holds.

    Raises:
        ExportError: it cannot be listed.
    """
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as exc:
        raise ExportError(f"the folder cannot be read ({exc.strerror})") from exc


def _shapes(folder: Path, name: str, why: str) -> dict[str, list[int]]:
    """Names and shapes of a file's tensors, none of a pickle; opening it holds its header against its length."""
    from safetensors import safe_open

    path = folder / name
    if not path.is_file():
        raise ExportError(f"{name} is missing, though {why}; get the checkpoint anew")
    check_no_pointer(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no dict
    except Exception as exc:
        raise ExportError(f"{path.name} is not whole ({cause(exc)}); {_anew(path)}") from exc


def _check_shapes(shapes: Mapping[str, list[int]], facts: Facts) -> None:
    """Each table of config.json's size; a layer of the encoder for each that config.json counts."""
    family = facts.family
    rows = {
        family.word_table: ("vocab_size", facts.vocab_size),
        "position_embeddings": ("max_position_embeddings", facts.n_positions),
        "token_type_embeddings": ("type_vocab_size", facts.n_segments),
    }
    width_key = family.width if family.embedding_width is None else family.embedding_width[0]
    width = facts.embedding_size
    for name, shape in shapes.items():
        table = name.rsplit(".", 2)[-2] if name.endswith(".weight") else ""
        key, stated = rows.get(table, ("", 0))
        if key and shape != [stated, width]:
            raise ExportError(
                f"the weights hold {table} of {shape}, config.json states {[stated, width]} "
                f"({key}, {width_key}); config and weights do not belong together"
            )
    layers = {int(match[1]) for name in shapes if (match := re.search(family.layer_weights, name))}
    if facts.n_layers > len(layers):
        raise ExportError(
            f"{family.stored_layers} in config.json is {facts.n_layers}, the weights hold {len(layers)} "
            "layers; config and weights do not belong together"
        )


def _anew(path: Path) -> str:
    return f"delete {path.resolve()} and get it anew"  # in the hub's cache the path is a link to the file itself
