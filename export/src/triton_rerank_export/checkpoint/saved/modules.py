"""A head that sentence-transformers keeps as modules: Pooling, then Dense and LayerNorm up to one score.

Each module has a folder with its config and, where it has any, its weights, which are not read here: module_head.py
computes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from triton_rerank_export.checkpoint.json_files import Stated, read_array, read_object, read_object_if_there
from triton_rerank_export.errors import ExportError

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
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


def of_a_cross_encoder(folder: Path) -> bool:
    """Sentence-transformers reads its settings of a CrossEncoder only, and only beside a list of modules."""
    return (folder / MODULES).is_file() and read_object_if_there(folder, SETTINGS).get("model_type") == "CrossEncoder"


def module_files(folder: Path) -> list[str]:
    """What `read_modules` and the weights of its head need besides modules.json, as ``1_Pooling/config.json``.

    Raises:
        ExportError: modules.json cannot be read.
    """
    modules = read_array(folder, MODULES) if of_a_cross_encoder(folder) else ()
    listed = [(kind_of(module), module.get("path")) for module in modules if is_ours(module)]
    return [f"{path}/{name}" for kind, path in listed if _is_path(path) for name in _FILES.get(kind, ())]


def read_modules(folder: Path, width: object) -> Head | None:
    """The head of a cross-encoder that sentence-transformers keeps as modules; None where it has no other than its own.

    Args:
        folder: checkpoint folder.
        width: of a layer, as config.json states it.

    Raises:
        ExportError: a module is of another kind, stands at another place, or would not fit; names it.
    """
    if not of_a_cross_encoder(folder):
        return None
    modules = read_array(folder, MODULES)
    kinds = [kind_of(module) for module in modules]
    alone, known = kinds == [_TRANSFORMER], all(map(is_ours, modules))
    headed = kinds[:2] == [_TRANSFORMER, _POOLING] and kinds[-1] == _DENSE and {*kinds[2:]} <= {_DENSE, _NORM}
    if not known or not (alone or headed):
        raise ExportError(
            f"{MODULES} names the modules {', '.join(kinds)[:80] or 'none'}; supported is one Transformer, alone or "
            "with Pooling and then Dense and LayerNorm up to a Dense that gives one score, since no other module would "
            "be served"
        )
    if root := modules[0].get("path"):
        raise ExportError(
            f'{MODULES} keeps the Transformer in {root!r:.80}; supported is the folder itself ("path": "")'
        )
    for module in modules[1:]:
        if not _is_path(module.get("path")):
            raise ExportError(f"{MODULES} keeps {kind_of(module)} in {module.get('path')!r:.80}; a folder was expected")
    return None if alone else _read(folder, [module["path"] for module in modules[1:]], kinds[1:], width)


def _read(folder: Path, paths: list[str], kinds: list[str], width: object) -> Head:
    settings = [_config(folder, path, kind) for path, kind in zip(paths, kinds, strict=True)]
    pooling = _pooling(settings[0], width)
    layers: list[HeadLayer] = []
    for path, kind, stated in list(zip(paths, kinds, settings, strict=True))[1:]:
        norm, before = kind == _NORM, layers[-1].outputs if layers else width
        layer = _norm(stated, path) if norm else _dense(stated, path, last=path == paths[-1])
        if layer.inputs != before:
            raise stated.wrong("dimension" if norm else "in_features", layer.inputs, f"{before}")
        layers.append(layer)
    if layers[-1].outputs != 1:
        raise settings[-1].wrong("out_features", layers[-1].outputs, "1, a reranker's one score,")
    return Head(pooling, tuple(layers))


def _config(folder: Path, path: str, kind: str) -> Stated:
    stated = read_object(folder, f"{path}/{_CONFIG}")
    older = [key for key in stated if kind == _POOLING and key.startswith("pooling_mode_")]
    for key in set(stated) - {*_KEYS[kind], *older}:
        raise ExportError(f"{key} in {stated.file} is not a setting of {kind} that is known here")
    return stated


def _pooling(stated: Stated, width: object) -> Literal["cls", "mean"]:
    mode = stated.get("pooling_mode")
    if mode is None:
        chosen = [
            key.removeprefix("pooling_mode_") for key, value in stated.items() if value is True and "mode_" in key
        ]
        mode = [_OLDER_POOLING.get(key, key) for key in chosen] or "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if mode not in ("cls", "mean"):
        raise stated.wrong("pooling_mode", mode, "cls or mean")
    dimension = stated.get("embedding_dimension", stated.get("word_embedding_dimension"))
    if dimension != width:
        raise stated.wrong("embedding_dimension", dimension, f"{width}")
    if stated.get("include_prompt", True) is not True:
        raise stated.wrong("include_prompt", stated["include_prompt"], "true")
    return "cls" if mode == "cls" else "mean"


def _dense(stated: Stated, path: str, *, last: bool) -> HeadLayer:
    activation = stated.get("activation_function", _DEFAULT_ACTIVATION)
    found = _ACTIVATION.fullmatch(activation) if isinstance(activation, str) else None
    if found is None:
        raise stated.wrong("activation_function", activation, "GELU, Identity, ReLU, SiLU, Sigmoid or Tanh of torch.nn")
    taken = stated.get("module_input_name", _POOLED)
    given = stated.get("module_output_name") or taken
    for key, name, expected in (
        ("module_input_name", taken, _POOLED),
        ("module_output_name", given, _SCORES if last else _POOLED),
    ):
        if name != expected:
            raise stated.wrong(key, name, expected)
    bias = stated.get("bias", True)
    if not isinstance(bias, bool):
        raise stated.wrong("bias", bias, "true or false")
    inputs, outputs = (stated.number(key, least=1) for key in ("in_features", "out_features"))
    return HeadLayer(path, "Dense", inputs, outputs, bias, found[1])


def _norm(stated: Stated, path: str) -> HeadLayer:
    width = stated.number("dimension", least=1)
    return HeadLayer(path, "LayerNorm", width, width)


def kind_of(module: object) -> str:
    """Class of a module of the list, without its package."""
    return str(module.get("type") if isinstance(module, dict) else module).rsplit(".", 1)[-1]


def is_ours(module: object) -> bool:
    """Sentence-transformers' own class, not one that a checkpoint brings."""
    return isinstance(module, dict) and str(module.get("type")).startswith("sentence_transformers.")


def _is_path(path: object) -> bool:
    return isinstance(path, str) and _SUBFOLDER.fullmatch(path) is not None
