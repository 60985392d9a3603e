"""fp32 graph -> int8 whose scales are constants, for OpenVINO. Same input, same bytes.

Scales that are measured before, on a set of pairs, spare the run the search for the range of every tensor, and a
pair's logit does not depend on the pairs beside it. The pairs are bundled texts, not those of the parity gate. The form
is ONNX's own (QuantizeLinear, DequantizeLinear around every matrix product with a weight), which OpenVINO turns into
int8 kernels.

A channel of the activations whose values are much larger than its neighbours' would leave these only a few steps. So
each is divided by a factor of its own, and its row of the weights multiplied by it: the same product, with the
difficulty shared between both sides (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from triton_rerank_export.gate.parity import ParityQuery, read_queries
from triton_rerank_export.graph import graph_file
from triton_rerank_export.graph.fp16 import Values
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

SMOOTHING = 0.75  # share of an outlier that the weights take; the field's α. 0.5 to 0.8 differ little (docs/LOG.md)

_STEPS = 255  # of an activation, uint8
_LARGEST, _LARGEST_REDUCED = 127, 63  # of a weight, int8 or 7 bits
_FAINT = 1e-3  # a channel counts as at least so large, beside the largest one

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """Least and largest value of each of a tensor's k channels: float32 ``(k,)`` both."""

    low: Floats
    high: Floats

    def joined(self, other: Range) -> Range:
        """The range of both."""
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


def measure(graph: Path, feeds: Iterable[Feed]) -> dict[str, Range]:
    """Ranges of everything that is multiplied by a weight.

    Args:
        graph: fp32, of standard operators.
        feeds: pairs, each by itself: input name -> int64 ``(1, tokens)``; at least one.

    Returns:
        Tensor name -> its range over all tokens of all feeds.
    """
    import onnxruntime as ort

    model = graph_file.load(graph)
    names = list(_groups(model.graph))
    outputs = [output for name in names for output in _watch(model.graph, name)]
    watched = graph.with_name("watched.onnx")  # beside the weights
    onnx.save(model, watched)
    session = ort.InferenceSession(watched, providers=["CPUExecutionProvider"])
    found: dict[str, Range] = {}
    for feed in feeds:
        values = session.run(outputs, feed)
        for name, low, high in zip(names, values[::2], values[1::2], strict=True):
            seen = Range(low, high)
            found[name] = found[name].joined(seen) if name in found else seen
    watched.unlink()
    return found


def quantise(model: ModelProto, values: Values, ranges: Mapping[str, Range], *, reduce_range: bool) -> None:
    """Turn every product with a weight into one of int8; embeddings, attention, layer norm and the head stay fp32.

    Args:
        model: graph that ``ranges`` were measured on; changed.
        values: gives the values of a weight.
        ranges: of ``measure``.
        reduce_range: weights have 7 bits.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, list[NodeProto]] = {}  # node name -> nodes that go in front of it
    for name, nodes in _groups(graph).items():
        matrices = [np.array(values(weights[node.input[1]])) for node in nodes]  # (k, n) each
        factors = _smoothing(ranges[name], matrices)
        before[nodes[0].name] = _quantised_input(graph, name, ranges[name], factors)
        for node, matrix in zip(nodes, matrices, strict=True):
            largest = _LARGEST_REDUCED if reduce_range else _LARGEST
            quantised = _quantised_weight(graph, weights[node.input[1]], matrix * factors[:, None], largest)
            before.setdefault(node.name, []).append(quantised)
            node.input[0], node.input[1] = f"{name}_quantised", quantised.output[0]
    ordered = [each for node in graph.node for each in (*before.get(node.name, ()), node)]
    graph_file.replace_nodes(graph, ordered)


def _groups(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Tensor name -> the products of it with weights, in the graph's order."""
    weights = {tensor.name for tensor in graph.initializer}
    groups: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            groups.setdefault(node.input[0], []).append(node)
    return groups


def _watch(graph: GraphProto, name: str) -> list[str]:
    """Add outputs with the least and largest value of each channel of a tensor ``(rows, tokens, k)``."""
    axes = f"{name}_axes"
    _constant(graph, axes, np.array([0, 1], np.int64))
    outputs = []
    for operator in ("ReduceMin", "ReduceMax"):
        outputs.append(f"{name}_{operator}")
        graph.node.append(helper.make_node(operator, [name, axes], outputs[-1:], keepdims=0))
        graph.output.add(name=outputs[-1])
    return outputs


def _smoothing(seen: Range, matrices: list[Floats]) -> Floats:
    """What each channel is divided by, ``(k,)``."""
    activations = _not_faint(np.maximum(np.abs(seen.low), np.abs(seen.high)))
    weights = _not_faint(np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0))
    return np.asarray(activations**SMOOTHING / weights ** (1 - SMOOTHING), dtype=np.float32)


def _not_faint(sizes: Floats) -> Floats:
    largest = float(sizes.max()) or 1.0  # all zero
    return np.maximum(sizes, np.float32(_FAINT * largest))


def _quantised_input(graph: GraphProto, name: str, seen: Range, factors: Floats) -> list[NodeProto]:
    """Nodes that make ``<name>_quantised``: divided by the factors, then on a scale of 256 steps that holds zero."""
    low, high = min(0.0, float((seen.low / factors).min())), max(0.0, float((seen.high / factors).max()))
    scale = np.float32((high - low) / _STEPS or 1.0)
    zero_point = np.uint8(round(-low / float(scale)))
    smooth, steps = f"{name}_smooth", f"{name}_steps"
    inverse = _constant(graph, f"{name}_factors", 1 / factors)
    grid = [_constant(graph, f"{name}_scale", scale), _constant(graph, f"{name}_zero_point", zero_point)]
    return [
        helper.make_node("Mul", [name, inverse], [smooth]),
        helper.make_node("QuantizeLinear", [smooth, *grid], [steps]),
        helper.make_node("DequantizeLinear", [steps, *grid], [f"{name}_quantised"]),
    ]


def _quantised_weight(graph: GraphProto, tensor: Any, matrix: Floats, largest: int) -> NodeProto:
    """Put int8 in the place of a weight ``(k, n)``, with a scale for each of its n columns."""
    scales = np.abs(matrix).max(axis=0) / np.float32(largest)
    scales[scales == 0] = 1.0
    name = tensor.name
    graph_file.fill(tensor, np.round(matrix / scales).astype(np.int8))
    return helper.make_node(
        "DequantizeLinear", [name, _constant(graph, f"{name}_scales", scales)], [f"{name}_quantised"], axis=1
    )


def _constant(graph: GraphProto, name: str, value: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


CALIBRATION_SET = Path(__file__).with_name("calibration_set.jsonl")

Feed = dict[str, npt.NDArray[np.int64]]

_LONGEST_WORDS = 500  # of the longest text of documents joined; the first query's has a twelfth of it


def calibration_feeds(tokenizer: PairTokenizer, inputs: Sequence[str]) -> Iterator[Feed]:
    """Every pair of the set by itself, so that no padding is measured.

    A query meets its own documents, one of another query, an empty one, and one made of many, as long as traffic has.

    Args:
        tokenizer: of the model, with the lengths that will be served.
        inputs: names of the encoder's inputs.

    Returns:
        Per pair, input name -> int64 ``(1, tokens)``.

    Raises:
        PairError: the tokenizer does not take the texts.
    """
    queries = read_queries(CALIBRATION_SET)
    for place, entry in enumerate(queries):
        pairs = tokenizer.encode(entry.query, [*entry.documents, *_more_documents(queries, place)])
        for row, tokens in enumerate(pairs.token_count[:, 0]):
            yield {name: getattr(pairs, name)[row : row + 1, :tokens] for name in inputs}


def _more_documents(queries: Sequence[ParityQuery], place: int) -> list[str]:
    following = [*queries[place + 1 :], *queries[: place + 1]]
    words = " ".join(document for entry in following for document in entry.documents).split()
    return [following[0].documents[0], "", " ".join(words[: _LONGEST_WORDS * (place + 1) // len(queries)])]
