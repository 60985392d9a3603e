"""model.onnx with its large weights beside it: in memory without them, on disk streamed one after the other.

onnx and ONNX Runtime copy a graph several times while they change it. Where the large weights are not in it, the
copies are small, and a model of any size is exported in little more memory than its weights need.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# Protobuf ends at 2 GiB. Long before, one file costs more: it is written and read with three times its size in memory,
# and ONNX Runtime copies its weights, while those of a second file are mapped (docs/LOG.md).
EXTERNAL_ABOVE = 2**28  # bytes of weights

_KEPT_INSIDE = 1024  # bytes; shapes, scalars and the weights of toy models never leave the graph
_READ_WITH_GRAPH = 2**16  # bytes; fusion reads biases and layer norms
_ALIGNMENT = 4096  # a page, so that ONNX Runtime maps the weights instead of copying them

Array = npt.NDArray[Any]


def data_file(path: Path) -> Path:
    """Where the large weights of a graph lie; its name is inside the graph, so both files keep their names."""
    return path.with_name(path.name + ".data")


def n_bytes(tensor: TensorProto) -> int:
    """Size of a weight's data."""
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def is_outside(tensor: TensorProto) -> bool:
    """True if the data of a weight are not in memory."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def load(path: Path) -> onnx.ModelProto:
    """Read a graph; weights above 64 KiB that lie outside stay there."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if n_bytes(tensor) <= _READ_WITH_GRAPH:
            bring_inside(tensor, path.parent)
    return model


def read(tensor: TensorProto, folder: Path) -> Array:
    """Values of a weight, mapped from its file where they lie outside.

    Args:
        tensor: a weight of a graph that was read from ``folder``.
        folder: of that graph.
    """
    if not is_outside(tensor):
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset, shape = int(place.get("offset", 0)), tuple(tensor.dims)
    return np.memmap(folder / place["location"], dtype=dtype, mode="r", offset=offset, shape=shape)


def fill(tensor: TensorProto, values: Array) -> None:
    """Put values into a weight, with their type and shape."""
    _describe(tensor, values)
    tensor.raw_data = values.tobytes()


def bring_inside(tensor: TensorProto, folder: Path) -> None:
    """Read the data of a weight into memory."""
    if is_outside(tensor):
        fill(tensor, read(tensor, folder))


def save(model: onnx.ModelProto, path: Path, values: Callable[[TensorProto], Array], *, external: bool) -> None:
    """Write a graph.

    Args:
        model: changed: its weights are those of the new file.
        path: of the graph; its folder is made.
        values: gives the values of a weight that is not in memory; asked once for each, in order.
        external: large weights go into ``data_file(path)``, else there is one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data_file(path)
    with data.open("wb") as out:
        for tensor in model.graph.initializer:
            if external and n_bytes(tensor) >= _KEPT_INSIDE:
                array = values(tensor) if is_outside(tensor) else numpy_helper.to_array(tensor)
                _move_outside(tensor, array, out, data.name)
            elif is_outside(tensor):
                fill(tensor, values(tensor))
    if not external:
        data.unlink()
    onnx.save(model, path)


def is_large(model: onnx.ModelProto) -> bool:
    """True if the weights of a graph have to lie outside of it."""
    return sum(n_bytes(tensor) for tensor in model.graph.initializer) > EXTERNAL_ABOVE


def name_weights_once(graph: onnx.GraphProto) -> None:
    """A weight that several operators take comes to them through Identity; let them take the weight itself."""
    weights = {tensor.name for tensor in graph.initializer}
    aliases: dict[str, str] = {}
    kept = []
    for node in graph.node:
        source = aliases.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type == "Identity" and source in weights:
            aliases[node.output[0]] = source
        else:
            node.input[:] = [aliases.get(name, name) for name in node.input]
            kept.append(node)
    replace_nodes(graph, kept)


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give a graph other operators, some of its own among them."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # what is deleted is gone
    del graph.node[:]
    graph.node.extend(copies)


@contextlib.contextmanager
def freeing_memory() -> Iterator[None]:
    """Give what a stage has freed back to the system; the C library would keep gigabytes for later.

    For a whole function, whose variables are gone then.
    """
    try:
        yield
    finally:
        gc.collect()  # the libraries' objects refer to each other
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


def _move_outside(tensor: TensorProto, values: Array, out: BinaryIO, name: str) -> None:
    out.write(bytes(-out.tell() % _ALIGNMENT))
    place = {"location": name, "offset": str(out.tell()), "length": str(values.nbytes)}
    np.ascontiguousarray(values).tofile(out)
    _describe(tensor, values)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)


def _describe(tensor: TensorProto, values: Array) -> None:
    """Set name, type and shape, and no data."""
    name = tensor.name
    tensor.Clear()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor.dims.extend(values.shape)
