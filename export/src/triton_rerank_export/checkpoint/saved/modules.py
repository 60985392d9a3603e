"""A head that sentence-transformers keeps as modules: Pooling, then Dense and LayerNorm up to one score.

Each module has a folder with its config and, where it has any, its weights, which are not read here: module_head.py
computes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triton_rerank_export.checkpoint.json_files import read_array, read_object
from triton_rerank_export.errors import ExportError

MODULES = "modules.json"
WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_TRANSFORMER, _POOLING, _DENSE, _NORM = "Transformer", "Pooling", "Dense", "LayerNorm"
_FILES = {_POOLING: (_CONFIG,), _DENSE: (_CONFIG, WEIGHTS), _NORM: (_CONFIG, WEIGHTS)}
_KEYS = {
    _POOLING: ("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"),
    _DENSE: ("in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name"),
    _NORM: ("dimension",),
}
_OLDER_POOLING = {"cls_token": "cls", "mean_tokens": "mean"}  # pooling_mode_…: true, before there was pooling_mode
_POOLED, _SCORES = "sentence_embedding", "scores"
_ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.(?:activation|linear)\.)?(GELU|Identity|ReLU|SiLU|Sigmoid|Tanh)")
_DEFAULT_ACTIVATION = "torch.nn.modules.activation.Tanh"  # sentence-transformers'
_SUBFOLDER = re.compile(r"\w[\w.-]*")
_MOST = 10**7


@dataclass(frozen=True)
class HeadLayer:
    """One module behind the pooling.

    Attributes:
        path: its folder.
        kind: class of sentence-transformers.
        inputs: width of what it takes.
        outputs: width of what it gives.
        bias: it adds one.
        activation: class of torch.nn that follows it.
    """

    path: str
    kind: Literal["Dense", "LayerNorm"]
    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "Identity"

    @property
    def weights(self) -> dict[str, list[int]]:
        """Names and shapes of its tensors."""
        if self.kind == _NORM:
            return {"norm.weight": [self.outputs], "norm.bias": [self.outputs]}
        bias = {"linear.bias": [self.outputs]} if self.bias else {}
        return {"linear.weight": [self.outputs, self.inputs], **bias}


@dataclass(frozen=True)
class Head:
    """What follows the layers of a model.

    Attributes:
        pooling: the head reads the "cls" token (the first one), or the "mean" of all.
        layers: in their order; the last one gives the score.
    """

    pooling: Literal["cls", "mean"]
    layers: tuple[HeadLayer, ...]


def list_files(folder: Path, label: str) -> list[str]:
    """Files in folders of their own that a checkpoint's list of modules leads to, as ``1_Pooling/config.json``.

    Raises:
        ExportError: the list cannot be read.
    """
    listed = [
        (kind_of(module), module.get("path")) for module in read_array(folder / MODULES, label) if is_ours(module)
    ]
    return [f"{path}/{name}" for kind, path in listed if _is_path(path) for name in _FILES.get(kind, ())]


def read_head(folder: Path, width: object, label: str) -> Head | None:
    """Read modules.json and each module's config; None where the Transformer stands alone.

    Args:
        folder: checkpoint folder.
        width: of what the Transformer gives, as config.json states it.
        label: what the checkpoint is called in a message.

    Raises:
        ExportError: a module is of another kind, stands at another place, or would not fit; names it.
    """
    modules = read_array(folder / MODULES, label)
    kinds = [kind_of(module) for module in modules]
    known = all(is_ours(module) for module in modules)
    if kinds == [_TRANSFORMER] and known:
        _check_root(modules[0], label)
        return None
    if kinds[:2] != [_TRANSFORMER, _POOLING] or kinds[-1] != _DENSE or {*kinds[2:]} - {_DENSE, _NORM} or not known:
        raise ExportError(
            f"{label}: {MODULES} names the modules {', '.join(kinds)[:80] or 'none'}; supported is one Transformer, "
            "alone or with Pooling and then Dense and LayerNorm up to a Dense that gives one score, since no other "
            "module would be served"
        )
    _check_root(modules[0], label)
    return _read(
        folder, [str(module["path"]) for module in modules[1:] if _has_path(module, label)], kinds, width, label
    )


def _read(folder: Path, paths: list[str], kinds: list[str], width: object, label: str) -> Head:
    settings = [_config(folder, path, kind, label) for path, kind in zip(paths, kinds[1:], strict=True)]
    pooling = _pooling(settings[0], paths[0], width, label)
    layers: list[HeadLayer] = []
    for path, kind, stated in zip(paths[1:], kinds[2:], settings[1:], strict=True):
        last = path == paths[-1]
        layer = _norm(stated, path, label) if kind == _NORM else _dense(stated, path, label, last=last)
        before = layers[-1].outputs if layers else width
        if layer.inputs != before:
            raise _wrong(label, path, "in_features" if kind == _DENSE else "dimension", layer.inputs, f"{before}")
        layers.append(layer)
    if layers[-1].outputs != 1:
        raise _wrong(label, paths[-1], "out_features", layers[-1].outputs, "1, a reranker's one score,")
    return Head(pooling, tuple(layers))


def _config(folder: Path, path: str, kind: str, label: str) -> dict[str, Any]:
    stated = read_object(folder / path / _CONFIG, f"{label}: {path}")
    older = [key for key in stated if kind == _POOLING and key.startswith("pooling_mode_")]
    for key in set(stated) - {*_KEYS[kind], *older}:
        raise ExportError(f"{label}: {key} in {path}/{_CONFIG} is not a setting of {kind} that is known here")
    return stated


def _pooling(stated: Mapping[str, Any], path: str, width: object, label: str) -> Literal["cls", "mean"]:
    mode = stated.get("pooling_mode")
    if mode is None:
        chosen = [
            key.removeprefix("pooling_mode_") for key, value in stated.items() if value is True and "mode_" in key
        ]
        mode = [_OLDER_POOLING.get(key, key) for key in chosen] or "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if mode not in ("cls", "mean"):
        raise _wrong(label, path, "pooling_mode", mode, "cls or mean")
    dimension = stated.get("embedding_dimension", stated.get("word_embedding_dimension"))
    if dimension != width:
        raise _wrong(label, path, "embedding_dimension", dimension, f"{width}")
    if stated.get("include_prompt", True) is not True:
        raise _wrong(label, path, "include_prompt", stated["include_prompt"], "true")
    return "cls" if mode == "cls" else "mean"


def _dense(stated: Mapping[str, Any], path: str, label: str, *, last: bool) -> HeadLayer:
    activation = stated.get("activation_function", _DEFAULT_ACTIVATION)
    found = _ACTIVATION.fullmatch(activation) if isinstance(activation, str) else None
    if found is None:
        raise _wrong(
            label, path, "activation_function", activation, "GELU, Identity, ReLU, SiLU, Sigmoid or Tanh of torch.nn"
        )
    taken = stated.get("module_input_name", _POOLED)
    given = stated.get("module_output_name") or taken
    for key, name, expected in (
        ("module_input_name", taken, _POOLED),
        ("module_output_name", given, _SCORES if last else _POOLED),
    ):
        if name != expected:
            raise _wrong(label, path, key, name, expected)
    bias = stated.get("bias", True)
    if not isinstance(bias, bool):
        raise _wrong(label, path, "bias", bias, "true or false")
    inputs, outputs = (_number(stated, key, path, label) for key in ("in_features", "out_features"))
    return HeadLayer(path, "Dense", inputs, outputs, bias, found[1])


def _norm(stated: Mapping[str, Any], path: str, label: str) -> HeadLayer:
    width = _number(stated, "dimension", path, label)
    return HeadLayer(path, "LayerNorm", width, width)


def _number(stated: Mapping[str, Any], key: str, path: str, label: str) -> int:
    value = stated.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise _wrong(label, path, key, value, "a number from 1")
    return value


def _wrong(label: str, path: str, key: str, value: object, expected: str) -> ExportError:
    return ExportError(f"{label}: {key} in {path}/{_CONFIG} is {value!r:.80}; {expected} was expected")


def kind_of(module: object) -> str:
    """Class of a module of the list, without its package."""
    return str(module.get("type") if isinstance(module, dict) else module).rsplit(".", 1)[-1]


def is_ours(module: object) -> bool:
    """Sentence-transformers' own class, not one that a checkpoint brings."""
    return isinstance(module, dict) and str(module.get("type")).startswith("sentence_transformers.")


def _is_path(path: object) -> bool:
    return isinstance(path, str) and _SUBFOLDER.fullmatch(path) is not None


def _has_path(module: Mapping[str, Any], label: str) -> bool:
    if not _is_path(module.get("path")):
        raise ExportError(
            f"{label}: {MODULES} keeps {kind_of(module)} in {module.get('path')!r:.80}; a folder was expected"
        )
    return True


def _check_root(module: Mapping[str, Any], label: str) -> None:
    if module.get("path"):
        raise ExportError(
            f"{label}: {MODULES} keeps the Transformer in {module['path']!r:.80}; supported is the folder itself "
            '("path": "")'
        )
