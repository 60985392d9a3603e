"""ONNX Runtime's TensorRT execution accelerator: the other road to TensorRT, with the engine built in the server.

NVIDIA's ONNX Runtime backend refuses a model over a key that it does not know; the keys below are those of
``onnxruntime_backend/src/onnxruntime.cc``, where the session options of an instance are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from triton_rerank_export.digest import sha256
from triton_rerank_export.tensorrt.profiles import shape_list, whole_range

NAME: Final = "tensorrt"  # of the gpu_execution_accelerator

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
