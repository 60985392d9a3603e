"""fp32 graph, fused or of standard operators -> fp16, where layer norm, softmax and the classifier head stay fp32.

The split is that of PyTorch's autocast. Matrix products with their bias, attention and GELU are fp16; what is summed
over a row, and what feeds nothing but such a sum, stays fp32: the residual stream, the scaled scores and the mask,
whose -3.4e38 is no fp16 number. The angles of rotary positions, as large as a position, are fp32 too; the rotation
itself is fp16. Every float operator is fp16 or fp32 as a whole and casts stand between them, so the types of all
tensors follow from the graph (TensorRT calls that strongly typed).

Neither converter at hand fits. ModelOpt AutoCast, whose rules these are (operators by type, weights beyond the range),
cannot share an environment with us. ONNX Runtime's clips such weights without a word, rounds what passes between two
fp32 operators to fp16, the mask and the logits included, and holds the weights several times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from triton_rerank.contract import LOGITS
from triton_rerank_export.errors import ExportError
from triton_rerank_export.graph.graph_file import Array, fill, name_weights_once, replace_nodes

LARGEST = float(np.finfo(np.float16).max)  # 65504

# com.microsoft.Attention is fp16 with its softmax inside. On CUDA its kernels scale the scores in the matrix product
# and compute exponentials and their sums in fp32 registers (ONNX Runtime's attention_softmax.cu, and its memory
# efficient kernel). Kernels that it took from TensorRT as binaries, for GPUs before Hopper, cannot be read; the
# environment variable ORT_DISABLE_FUSED_ATTENTION=1 avoids them. On Hopper and later, ONNX Runtime up to 1.28 has no
# fused kernel for a mask of one length a row, which is ours: it stores the scores in fp16 between two products. 1.31
# takes cuDNN's (onnxruntime#29717). The fused layer norms sum in fp16 there (skip_layer_norm_impl.cu), so they get
# fp32.
_LAYER_NORMS = {"LayerNormalization", "SkipLayerNormalization"}
_SUMS = {*_LAYER_NORMS, "Softmax"}
_OF_ANGLES = {"Cos", "Sin"}
_FULL = {*_SUMS, *_OF_ANGLES, "Where"}  # Where writes the mask's numbers
_PRODUCTS = {"MatMul", "Gemm", "Attention", "PackedMultiHeadAttention"}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Cast"}
_MOVES = {"Gather", "Slice", "Reshape", "Transpose", "Concat", "Expand", "Split", "Squeeze", "Unsqueeze"}
_OF_HEADS = {"ReduceSum", "Relu", "Sigmoid"}
_KNOWN = {*_FULL, *_PRODUCTS, *_ELEMENTWISE, *_MOVES, *_OF_HEADS, "Erf", "Tanh", "BiasGelu", "Gelu"}

_MANY = 1e-4  # share of weights that become zero, from which the user is told
_LISTED = 5

Values = Callable[[TensorProto], Array]


def to_fp16(graph: GraphProto, values: Values, *, residuals: bool = False) -> tuple[str, ...]:
    """Convert a graph in place; its inputs stay integers and its logits fp32.

    Args:
        graph: fp32.
        values: gives the values of a weight.
        residuals: layer norms take and give fp16, so that no cast stands between two layers. A CUDA kernel of
            LayerNormalization sums in fp32 all the same; that of SkipLayerNormalization, which ONNX Runtime puts in its
            place, does so with ``enable_skip_layer_norm_strict_mode``.

    Returns:
        Sentences for the user: which weights do not fit, and whether many become zero.

    Raises:
        ExportError: an operator is not known here.
    """
    _inline_aliases_and_constants(graph)
    flow = _Flow(graph, _FULL - _LAYER_NORMS if residuals else _FULL)
    flow.multiply_angles()
    half = flow.half()
    unfit = _unfit(graph, flow.weights_of(half), values)
    half -= flow.computed_from(set(unfit))
    lost = _convert_weights(graph, flow, half, values)
    _insert_casts(graph, flow, half)
    return (*_unfit_note(unfit, flow), *lost)


class _Flow:
    """Who makes and who takes the float tensors of a graph. A float operator goes by the names of its outputs."""

    def __init__(self, graph: GraphProto, full: set[str]) -> None:
        self._full = full
        self.weights = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        self.nodes: dict[str, NodeProto] = {}  # in order
        self.takers: dict[str, list[str]] = defaultdict(list)
        for node in graph.node:
            if self._makes_float(node):
                self.nodes.update((name, node) for name in node.output if name)
                for name in set(node.input):
                    self.takers[name].append(node.output[0])

    def _makes_float(self, node: NodeProto) -> bool:
        if node.op_type == "Cast":
            return bool(helper.get_node_attr_value(node, "to") == TensorProto.FLOAT)
        takes_float = any(name in self.weights or name in self.nodes for name in node.input)
        if takes_float and node.op_type not in {*_KNOWN, "Shape"}:
            raise ExportError(
                f"operator {node.op_type} ({node.name}): the conversion to fp16 does not know it; it knows "
                f"{', '.join(sorted(_KNOWN))}. Export fp32"
            )
        return takes_float and node.op_type != "Shape"

    def multiply_angles(self) -> None:
        """Rotary positions are a matrix product of one position and one frequency each: written as what it is.

        A GPU computes fp32 matrix products in TF32, which has 11 bits for a position, unless it is told not to.
        """
        for name in self._angles():
            if self.nodes[name].op_type == "MatMul":
                self.nodes[name].op_type = "Mul"

    def half(self) -> set[str]:
        """Operators that are fp16 if all weights fit."""
        head = self._before([LOGITS], self._ends_a_layer)  # what follows the last layer
        full = {name for name, node in self.nodes.items() if node.op_type in self._full} | head | self._angles()
        for node in reversed(self.nodes.values()):
            takers = [taker for name in node.output for taker in self.takers[name]]
            if self._follows(node) and full.issuperset(takers):
                full.update(node.output)
        return set(self.nodes) - full

    def _follows(self, node: NodeProto) -> bool:
        """Whether it is fp32 where all that take its output are; a table is fp16 all the same."""
        if node.op_type in _MOVES:
            return self.weights.isdisjoint(node.input)
        return node.op_type in _ELEMENTWISE and not self._adds_bias(node)

    def _angles(self) -> set[str]:
        """What sines and cosines are computed from."""
        of_angles = [node for node in self.nodes.values() if node.op_type in _OF_ANGLES]
        return self._before([name for node in of_angles for name in node.input], lambda _: False)

    def _before(self, names: list[str], ends: Callable[[NodeProto], bool]) -> set[str]:
        """Operators from which tensors are computed, back to those that end the search."""
        found: set[str] = set()
        while names:
            name = names.pop()
            if name in self.nodes and name not in found and not ends(self.nodes[name]):
                found.update(self.nodes[name].output)
                names.extend(self.nodes[name].input)
        return found

    def _ends_a_layer(self, node: NodeProto) -> bool:
        """A layer norm of what a layer adds to its input; one inside a head has a single tensor to sum."""
        if node.op_type != "LayerNormalization":
            return node.op_type in _LAYER_NORMS
        added = self.nodes.get(node.input[0])
        return added is not None and added.op_type == "Add" and self.weights.isdisjoint(added.input)

    def _adds_bias(self, node: NodeProto) -> bool:
        """The bias of a matrix product is added in the product's type: one kernel does both."""
        products = [name for name in node.input if name in self.nodes and self.nodes[name].op_type in _PRODUCTS]
        return node.op_type == "Add" and bool(products) and not self.weights.isdisjoint(node.input)

    def weights_of(self, nodes: set[str]) -> set[str]:
        return {name for node in nodes for name in self.nodes[node].input} & self.weights

    def computed_from(self, weights: set[str]) -> set[str]:
        """Operators that see values of these weights, up to the next sum over a row, which brings them into range."""
        seen = set(weights)
        for name, node in self.nodes.items():
            if node.op_type not in _SUMS and not seen.isdisjoint(node.input):
                seen.add(name)
        return seen - weights


def _inline_aliases_and_constants(graph: GraphProto) -> None:
    """The exporter gives equal weights further names, and writes numbers as Constant: one form."""
    name_weights_once(graph)
    kept = []
    for node in graph.node:
        constant = node.attribute[0].t if node.op_type == "Constant" else None
        if constant is not None and constant.data_type == TensorProto.FLOAT:
            graph.initializer.add().CopyFrom(constant)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    replace_nodes(graph, kept)


def _unfit(graph: GraphProto, names: set[str], values: Values) -> dict[str, float]:
    """Weights with a value that fp16 has not, infinite and NaN ones included, and the largest."""
    found = {}
    for tensor in graph.initializer:
        if tensor.name in names:
            array = values(tensor)
            largest = float(np.maximum(array.max(initial=0.0), -array.min(initial=0.0)))
            if not largest <= LARGEST:
                found[tensor.name] = largest
    return found


def _convert_weights(graph: GraphProto, flow: _Flow, half: set[str], values: Values) -> list[str]:
    """Convert the weights of fp16 operators; one that an fp32 operator takes too is kept beside its conversion."""
    wanted, kept = flow.weights_of(half), flow.weights_of(set(flow.nodes) - half)
    lost = total = 0
    for tensor in [tensor for tensor in graph.initializer if tensor.name in wanted]:
        array = values(tensor)
        converted = array.astype(np.float16)
        lost += int(np.count_nonzero(array)) - int(np.count_nonzero(converted))
        total += array.size
        if tensor.name in kept:
            tensor = graph.initializer.add(name=_cast_name(tensor.name, TensorProto.FLOAT16))
        fill(tensor, converted)
    if lost <= _MANY * total:
        return []
    return [f"{lost} of {total} weights ({lost / total:.2%}) are too small for fp16 and become 0"]


def _insert_casts(graph: GraphProto, flow: _Flow, half: set[str]) -> None:
    """Give every float operator inputs of its own type."""
    kept = flow.weights_of(set(flow.nodes) - half)
    casts: dict[str, NodeProto] = {}
    nodes = []
    for node in graph.node:
        if node.output[0] in flow.nodes:
            to = TensorProto.FLOAT16 if node.output[0] in half else TensorProto.FLOAT
            if node.op_type == "Cast":
                node.attribute[0].i = to
            for index, name in enumerate(node.input):
                cast = _cast_name(name, to)
                if name in flow.nodes and (name in half) != (to == TensorProto.FLOAT16):
                    if cast not in casts:
                        casts[cast] = helper.make_node("Cast", [name], [cast], cast, to=to)
                        nodes.append(casts[cast])
                    node.input[index] = cast
                elif name in kept and to == TensorProto.FLOAT16:
                    node.input[index] = cast
        nodes.append(node)
    replace_nodes(graph, nodes)


def _cast_name(name: str, to: int) -> str:
    return f"{name}_fp16" if to == TensorProto.FLOAT16 else f"{name}_fp32"


def _unfit_note(unfit: dict[str, float], flow: _Flow) -> list[str]:
    if not unfit:
        return []
    named = [
        f"{name} of {', '.join(flow.nodes[taker].name for taker in flow.takers[name])} (largest {largest:.3g})"
        for name, largest in list(unfit.items())[:_LISTED]
    ]
    more = f" and {len(unfit) - _LISTED} more" if len(unfit) > _LISTED else ""
    return [
        f"weights that do not fit fp16, whose largest number is {LARGEST:g}, stay fp32 with all that is computed from "
        f"them up to the next layer norm or softmax: {'; '.join(named)}{more}"
    ]
