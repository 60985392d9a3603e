"""What the tests of graphs share: token batches, PyTorch's logits, and a graph's logits and types in ONNX Runtime."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from safetensors.torch import load_file, save_file

from triton_rerank_export.checkpoint.resolve import Checkpoint, read_checkpoint
from triton_rerank_export.gate.reference import load_model
from triton_rerank_export.graph import trace
from triton_rerank_server.backends.encoder.onnxruntime_session import int8_saturates

Batch = dict[str, npt.NDArray[np.int64]]


def checkpoint_of(folder: Path) -> Checkpoint:
    return read_checkpoint(folder, name=folder.name, source="s")


def batches(checkpoint: Checkpoint) -> list[Batch]:
    """Batches of several sizes and lengths; rows are padded on the right, as the tokenizer backend does."""
    return [_batch(checkpoint, lengths) for lengths in ([1], [7, 7], [40, 3, 21, 1], [96] * 3)]


def _batch(checkpoint: Checkpoint, lengths: list[int]) -> Batch:
    numbers = np.random.default_rng(len(lengths))
    shape = (len(lengths), max(lengths))
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, numbers.integers(5, 600, shape), checkpoint.pad_token_id)
    segments = {"token_type_ids": mask * (np.arange(shape[1]) > 4)} if checkpoint.token_type_ids else {}
    return {"input_ids": ids, "attention_mask": mask, **segments}


def pytorch_logits(checkpoint: Checkpoint) -> list[npt.NDArray[np.float32]]:
    model = load_model(checkpoint.folder)
    with torch.no_grad():
        return [
            model(**{name: torch.from_numpy(ids) for name, ids in batch.items()}).logits.numpy()
            for batch in batches(checkpoint)
        ]


def onnx_session(model: str | bytes, *, exact: bool = False) -> ort.InferenceSession:
    """Of a file or a model's bytes; ``exact``: int8 does not saturate on CPUs without VNNI either, as it is served."""
    options = ort.SessionOptions()
    if exact and int8_saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_logits(path: Path, inputs: list[Batch], *, exact: bool = False) -> list[npt.NDArray[np.float32]]:
    session = onnx_session(str(path), exact=exact)
    return [session.run(["logits"], batch)[0] for batch in inputs]


def largest_difference(path: Path, checkpoint: Checkpoint) -> float:
    """Of a graph's logits to PyTorch's; NaN if one is not finite."""
    pairs = zip(onnx_logits(path, batches(checkpoint), exact=True), pytorch_logits(checkpoint), strict=True)
    return float(np.max(np.concatenate([np.abs(got - expected) for got, expected in pairs])))


def tensor_types(path: Path) -> dict[str, str]:
    """Type of every weight and every operator's output, as ONNX Runtime infers it: "float", "float16", "int64" …"""
    model = onnx.load(path)
    types = {tensor.name: _type_name(tensor.data_type) for tensor in model.graph.initializer}
    named = {value.name for value in model.graph.output}
    outputs = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in named)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return types | {value.name: value.type.removeprefix("tensor(").removesuffix(")") for value in session.get_outputs()}


def _type_name(data_type: int) -> str:
    return onnx.TensorProto.DataType.Name(data_type).lower()


def export_stages(folder: Path, work: Path) -> tuple[Checkpoint, dict[str, Path]]:
    """Of a checkpoint: traced as it is, and with the last layer for the first token only; fused."""
    checkpoint = checkpoint_of(folder)
    traced = trace.export_graph(checkpoint, work)
    return checkpoint, {
        "traced": traced,
        "cut": trace.export_graph(checkpoint, work / "cut", cut_last_layer=True),
        "fused": trace.fuse(traced, checkpoint, work),
    }


def with_weight(source: Path, folder: Path, name: str, change: Callable[[torch.Tensor], Any]) -> Path:
    """The same checkpoint with one weight changed in place; ``name`` ends the weight's name."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    (found,) = [weight for weight in weights if weight.endswith(name)]
    change(weights[found])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
