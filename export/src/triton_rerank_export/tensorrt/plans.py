"""ONNX graph -> TensorRT plan, with the TensorRT of the image that serves it.

A plan runs only with the TensorRT that built it, on a GPU of the kind it was built on. So the plan is built in a
container made from the serving image (docker/export.Dockerfile), on the machine that will serve.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError
from triton_rerank_export.graph import attention
from triton_rerank_export.tensorrt import tensorrt_package
from triton_rerank_export.tensorrt.profiles import CACHE_FOLDER, profiles
from triton_rerank_server import atomic

# ONNX Runtime 1.28.0 and Python 3.12 by triton-inference-server/server, docs/introduction/compatibility.md. It is the
# default of docker/ too; a test compares.
TRITON_IMAGE: Final = "nvcr.io/nvidia/tritonserver:26.08-py3"

SERVED_VERSION: Final = (
    "TRT_VERSION"  # environment variable of NVIDIA's images, such as 10.3.0.26 or 10.3.0.26+cuda12.6
)

CONTAINER_COMMAND: Final = (
    f'docker run --rm --gpus all -v "$PWD/model_repository:/models" -v triton-rerank-cache:{CACHE_FOLDER} '
    "triton-rerank-export export --model MODEL --engine tensorrt --precision fp16 --model-repository /models"
)

# The first whose parser imports ONNX's operator Attention: NVIDIA/TensorRT's CHANGELOG.md, 10.14 GA, "Parsers: Added
# support for the Attention operator"; onnx-tensorrt's docs/operators.md of 10.15 lists it, up to opset 24.
_IMPORTS_ATTENTION: Final = (10, 14)

_DRIVER = "libcuda.so.1"

Ids = npt.NDArray[np.int64]
Progress = Callable[[str], object]


def check_available() -> None:
    """Fail before anything long is done, if no plan can be built here.

    Raises:
        ExportError: says in one line what is missing, and the command that does it in the container.
    """
    fault = _gpu_fault() or _tool_fault()
    if fault:
        raise ExportError(
            f"no TensorRT plan can be built here: {fault}; in the container (docker/README.md): {CONTAINER_COMMAND}"
        )


def imports_attention() -> bool:
    """The TensorRT that will serve takes attention as one operator (graph/attention.py)."""
    return tuple(int(part) for part in re.findall(r"\d+", _serving())[:2]) >= _IMPORTS_ATTENTION


def check_operators(graph: Path) -> None:
    """Refuse a graph whose operators TensorRT does not know: its parser would, and ONNX Runtime would leave them out.

    Raises:
        ExportError: names the operators.
    """
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph.node
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ExportError(f"{graph.name} has {', '.join(foreign)}: TensorRT takes the traced graph, not the fused one")


def build_plan(
    graph: Path,
    output: Path,
    *,
    inputs: Sequence[str],
    ladder: Sequence[int],
    max_batch_size: int,
    timing_cache: Path,
    on_step: Progress,
) -> tuple[str, ...]:
    """Build a plan with two profiles for each padded length; precision is the graph's.

    Where TensorRT has no kernel for the whole of an operator Attention on this GPU, it builds no engine. Then it is
    asked once more, and may compute attention by several.

    Args:
        graph: fp16 ONNX file of standard operators; its external data lie beside it. It may be changed.
        output: the plan.
        inputs: names of the graph's inputs.
        ladder: padded lengths, ascending.
        max_batch_size: most pairs of an execution.
        timing_cache: kernel timings of earlier builds; read, and replaced by those of this one.
        on_step: called with what is being done.

    Returns:
        Sentences for the user: whether attention is computed by several kernels.

    Raises:
        ExportError: TensorRT refuses the graph or builds no engine; holds its words.
    """
    check_operators(graph)
    chosen = profiles(ladder, max_batch_size)

    def build(how: str) -> None:
        """The plan from the graph as it is now; ``how`` is told with what is being done."""
        on_step(f"building the TensorRT plan{how}, {len(chosen)} profiles up to {ladder[-1]}; this takes minutes")
        with atomic.new_file(timing_cache) as cache:  # a broken build leaves the old one
            if timing_cache.is_file():
                shutil.copyfile(timing_cache, cache)
            tensorrt_package.build(graph, output, inputs=inputs, profiles=chosen, timing_cache=cache)

    try:
        build("")
    except tensorrt_package.NoEngineError as exc:
        if not attention.let_fall_apart(graph):
            raise
        build(" with attention by several kernels")
        return (f"attention is computed by several kernels: with one for the whole {exc}",)
    return ()


def _gpu_fault() -> str | None:
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return f"no NVIDIA GPU (the driver's {_DRIVER} is missing)"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else f"no NVIDIA GPU (the driver answers with code {code} and {count.value} devices)"


def _tool_fault() -> str | None:
    package = tensorrt_package.load()
    if package is None:
        return "the Python package tensorrt is not installed"
    version, serving = str(package.__version__), _serving()
    if not serving:
        return f"which TensorRT will serve is not known: {SERVED_VERSION} is not set, as NVIDIA's images have it"
    if version.split(".")[:3] != serving.split(".")[:3]:
        return f"TensorRT is {version}, but {SERVED_VERSION} says that {serving} will serve; plans run on their own"
    import torch

    usable = torch.cuda.is_available()
    return None if usable else f"PyTorch {torch.__version__} cannot use the GPU, and the plan is compared through it"


def _serving() -> str:
    """Version of the TensorRT that will serve, without CUDA's; "" where nobody says it."""
    return re.split("[+-]", os.environ.get(SERVED_VERSION, ""))[0]
