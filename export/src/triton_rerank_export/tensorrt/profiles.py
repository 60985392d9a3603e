"""What TensorRT is told of shapes: by the profiles of a plan, and by ONNX Runtime's execution accelerator.

The latter is the other road to TensorRT, with the engine built in the server. NVIDIA's ONNX Runtime backend refuses a
model over a key that it does not know; the keys below are those of ``onnxruntime_backend/src/onnxruntime.cc``, where
the session options of an instance are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from triton_rerank_export.digest import sha256
from triton_rerank_export.errors import ExportError

Shape = tuple[int, int]  # pairs, tokens a pair
_FEW = 8  # pairs: a query with its ten best documents asks for other kernels than a full execution


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine takes, every input alike.

    Attributes:
        minimum: fewest pairs and tokens.
        optimum: what the kernels are chosen for.
        maximum: most pairs and tokens.
    """

    minimum: Shape
    optimum: Shape
    maximum: Shape


def profiles(ladder: Sequence[int], max_batch_size: int) -> tuple[Profile, ...]:
    """Two profiles a rung: for few pairs, and for as many as there may be.

    Every length from 1 to the last rung has both. Triton takes the fitting one whose optimum is nearest.

    Args:
        ladder: padded lengths, ascending.
        max_batch_size: most pairs of an execution.
    """
    lowest = (1, *(rung + 1 for rung in ladder[:-1]))
    few = [(1, _FEW)] if max_batch_size > _FEW else []
    return tuple(
        Profile((1, low), (optimum, rung), (most, rung))
        for low, rung in zip(lowest, ladder, strict=True)
        for optimum, most in [*few, (max_batch_size, max_batch_size)]
    )


def whole_range(ladder: Sequence[int], max_batch_size: int) -> Profile:
    """One profile for all lengths, with the kernels chosen for the ladder's middle."""
    return Profile((1, 1), (max_batch_size, ladder[len(ladder) // 2]), (max_batch_size, ladder[-1]))


def profile_index(among: Sequence[Profile], pairs: int, length: int) -> int:
    """Index of the narrowest profile that takes so many pairs of a padded length; the widest where none takes so many.

    Raises:
        ExportError: none takes the length.
    """
    fitting = [index for index, each in enumerate(among) if each.minimum[1] <= length <= each.maximum[1]]
    if not fitting:
        raise ExportError(f"tensors are {length} tokens long: the plan takes 1 to {among[-1].maximum[1]}")
    return next((index for index in fitting if pairs <= among[index].maximum[0]), fitting[-1])


def shape_list(inputs: Sequence[str], shape: Shape) -> str:
    """``input_ids:1x32,attention_mask:1x32``, as ONNX Runtime writes shapes."""
    return ",".join(f"{name}:{shape[0]}x{shape[1]}" for name in inputs)


ACCELERATOR: Final = "tensorrt"  # of the gpu_execution_accelerator

# In the container, writable for Triton's user. ONNX Runtime makes one missing folder but not two: all models share it.
CACHE_FOLDER: Final = "/var/cache/triton-rerank"

_WORKSPACE_BYTES: Final = 4 << 30  # scratch memory that a kernel may ask for


def accelerator_parameters(*, inputs: Sequence[str], ladder: Sequence[int], max_batch_size: int) -> dict[str, str]:
    """Parameters of the accelerator in config.pbtxt.

    ``precision_mode`` is absent: the graph is fp16 already, and TensorRT 11 takes its types from the graph. There is
    one profile for all lengths, since ONNX Runtime never leaves an engine's first (onnxruntime#31624); without an
    explicit one it builds the engine anew, on the request path, for every shape outside those seen so far.

    Args:
        inputs: names of the encoder's inputs.
        ladder: padded lengths, ascending.
        max_batch_size: most pairs of an execution.
    """
    span = whole_range(ladder, max_batch_size)
    return {
        "max_workspace_size_bytes": str(_WORKSPACE_BYTES),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": CACHE_FOLDER,
        "trt_layer_norm_fp32_fallback": "1",  # acts where fp16 is asked for by flag; the graph's own fp32 stays anyway
        "trt_profile_max_shapes": shape_list(inputs, span.maximum),
        "trt_profile_min_shapes": shape_list(inputs, span.minimum),
        "trt_profile_opt_shapes": shape_list(inputs, span.optimum),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": CACHE_FOLDER,
    }


def name_graph(graph: Path) -> None:
    """Name a graph after its weights, in place.

    ONNX Runtime finds a cached engine by the graph's name and structure, never by its weights: two versions of a model
    would both be served with the engine of whichever was loaded first (onnxruntime#6455, #32254).

    Args:
        graph: ONNX file; its external data lie beside it.
    """
    import onnx

    model = onnx.load(graph, load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    data = sorted({entry.value for entry in entries if entry.key == "location"})
    digests = [sha256(path) for path in (graph, *(graph.parent / name for name in data))]
    model.graph.name = "weights_" + hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    onnx.save(model, graph)
