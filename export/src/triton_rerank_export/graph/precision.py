"""fp32 graph -> the precision that is served. Same input, same bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from triton_rerank_export.checkpoint.families import Family, matches
from triton_rerank_export.errors import ExportError
from triton_rerank_export.graph import fp16, graph_file, static_int8
from triton_rerank_export.graph.static_int8 import Feed
from triton_rerank_export.graph.trace import quiet
from triton_rerank_export.repository.triton_config import Precision

_AS_TRACED = ("fp32", "bf16")  # the weights stay fp32; OpenVINO rounds them when it loads


@dataclass(frozen=True)
class Converted:
    """A graph in the form that is served.

    Attributes:
        path: of the graph; ``graph.graph_files(path)`` lists its files.
        notes: sentences for the user.
    """

    path: Path
    notes: tuple[str, ...] = ()


@graph_file.freeing_memory()
def convert(
    graph: Path,
    precision: Precision,
    work: Path,
    *,
    family: Family,
    reduce_range: bool = False,
    feeds: Iterable[Feed] | None = None,
    half_residuals: bool = False,
) -> Converted:
    """Write a graph in the precision that is served: one file or, above 256 MiB of weights, two.

    Args:
        graph: fp32.
        precision: fp32 and bf16 change no number; what fp16 changes is said in fp16.py; int8 is dynamic: weights per
            channel now, activations per tensor at run time. With ``feeds`` it is static, as static_int8.py says.
        work: scratch folder.
        family: of the model.
        reduce_range: weights of int8 have 7 bits, for CPUs without VNNI: there ONNX Runtime adds pairs of products in
            16 bits, which 8-bit weights overflow. Its session option x64quantprecision avoids that and keeps 8 bits,
            but NVIDIA's backend cannot set it (docs/LOG.md).
        feeds: pairs that static int8 takes the ranges of activations from; None for anything else.
        half_residuals: fp16 is its layer norms' type too, and so the residuals'.

    Returns:
        ``<work>/<precision>/model.onnx``; for fp32 and bf16 ``graph`` itself if it already has the right form.

    Raises:
        ExportError: the graph cannot be converted.
    """
    notes: tuple[str, ...] = ()

    def values(tensor: TensorProto) -> graph_file.Array:
        return graph_file.read(tensor, graph.parent)

    model = graph_file.load(graph)
    if precision in _AS_TRACED and graph_file.is_large(model):
        return Converted(graph)
    if precision == "int8" and family.shares_weights:
        _unshare(model.graph)
    if precision == "fp16":
        notes = fp16.to_fp16(model.graph, values, residuals=half_residuals)
    elif feeds is not None:
        static_int8.quantise(model, values, static_int8.measure(graph, feeds), reduce_range=reduce_range)
    elif precision == "int8":
        model = _quantised(model, values, work, family, reduce_range=reduce_range)
    path = work / precision / "model.onnx"
    graph_file.save(model, path, values, external=graph_file.is_large(model))
    return Converted(path, notes)


def _quantised(model: ModelProto, values: fp16.Values, work: Path, family: Family, *, reduce_range: bool) -> ModelProto:
    """Quantise the matrices of a graph of standard operators.

    Three parts stay fp32, because as int8 they cost order (docs/LOG.md): the embeddings, the second feed-forward
    matrix of the first third of the layers, whose inputs have outliers, and the head, which costs one token's time.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    tables = _set_tables_aside(model.graph)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder, quiet():
        source, target = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        graph_file.save(model, source, values, external=True)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=_kept_fp32(model.graph.node, family),
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
        )
        quantised = onnx.load(target)
    for tensor in quantised.graph.initializer:
        if tensor.name in tables:
            tensor.CopyFrom(tables[tensor.name])
    return quantised


def _unshare(graph: GraphProto) -> None:
    """Give each product a weight of its own.

    Layers that share theirs (ALBERT) have other ranges each, and ONNX Runtime does not load a graph in which two
    integer products take one quantised weight.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for node in [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]:
        name = node.input[1]
        if name in taken:
            node.input[1] = f"{name}_of_{node.name}"
            graph.initializer.add().CopyFrom(weights[name])
            graph.initializer[-1].name = node.input[1]
        taken.add(name)


def _set_tables_aside(graph: GraphProto) -> dict[str, TensorProto]:
    """Replace the large tables, which are not quantised, by one row: the quantiser holds a graph several times."""
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    tables = {}
    for tensor in graph.initializer:
        if graph_file.is_outside(tensor) and tensor.name in looked_up:
            tables[tensor.name] = TensorProto.FromString(tensor.SerializeToString())
            graph_file.fill(tensor, np.zeros((1, *tensor.dims[1:]), np.float32))
    return tables


def _kept_fp32(nodes: Sequence[NodeProto], family: Family) -> list[str]:
    """Names of products, as the quantiser calls them, by Hugging Face's module names and the graph's order.

    The second feed-forward product of the first third of the layers, and the head: all that follow the last of these.

    Raises:
        ExportError: no node has such a name.
    """
    names = [node.name for node in nodes]
    layers = matches(family.feed_forward_out, names)  # in their order
    if not layers:
        raise ExportError(
            f"no operator of the graph is named like {family.architecture}'s second feed-forward product "
            f"({family.feed_forward_out}), which int8 keeps in fp32 in the first layers; the installed transformers "
            "is not one that is known here. Export fp32"
        )
    head = [node.name for node in nodes[names.index(layers[-1]) + 1 :] if node.op_type in ("MatMul", "Gemm")]
    kept = {*(name for number, name in enumerate(layers) if 3 * number < len(layers)), *head}
    # it makes a MatMul of a Gemm first
    return [node.name + "_MatMul" * (node.op_type == "Gemm") for node in nodes if node.name in kept]
