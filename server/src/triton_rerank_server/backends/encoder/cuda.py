"""Runs a session with the tensors of fixed shapes held on the device; on a GPU, each shape as a CUDA graph.

A graph replays all kernels of a run with one launch. That pays where launching them takes longer than computing them,
so for few tokens; what fits no shape runs as usual. What ONNX Runtime asks for (documentation of its CUDA provider;
``gpu_graph_id`` in ``onnxruntime_run_options_config_keys.h``):

- no control flow, and every node on the CUDA provider; nodes that compute shapes may stay on the CPU as long as nothing
  is copied between the two. Otherwise it refuses the session;
- inputs and outputs bound, at the same addresses and in the same shapes at every replay;
- an id for each shape, from 1. A run with -1 uses no graph; one without an id would replay the first one's, whatever
  its shape. NVIDIA's native backend gives no ids, so ``enable_cuda_graph`` must not stand in its accelerator's
  parameters: shapes are a parameter of the model, ``cuda_graph_shapes``, which it passes over;
- a graph belongs to the thread that captured it. Triton's stub loads and runs a model in one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .session import EngineError

Shape = tuple[int, int]  # rows, width

PROVIDER = "CUDAExecutionProvider"
LOGITS = "logits"
MASK = "attention_mask"
_NO_GRAPH = -1
_TOLERANCE = 0.01  # the same kernels in the same order should give the same logits; fp16 may differ by tiling
_DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}


class DeviceError(EngineError):
    """A shape or a session that cannot be used on this device; the message says which and why."""


def parse_shapes(text: str) -> list[Shape]:
    """Shapes from ``cuda_graph_shapes``, such as "1x32,8x32,1x512".

    Args:
        text: rows × width each, separated by commas; empty for none.

    Raises:
        DeviceError: something else.
    """
    shapes = []
    for part in filter(None, text.split(",")):
        rows, _, width = part.partition("x")
        if not (rows.isdecimal() and width.isdecimal() and int(rows) and int(width)):
            raise DeviceError(f"cuda_graph_shapes has {part!r}: it must be rows x width, such as 8x128")
        shapes.append((int(rows), int(width)))
    return shapes


def load_libraries() -> None:
    """Load CUDA and cuDNN from the wheels beside onnxruntime, where there are any; else the system's are found."""
    ort.preload_dlls()


def provider_options(device_id: int, options: Mapping[str, str], *, graphs: bool) -> dict[str, str]:
    """Options of the CUDA provider.

    Args:
        device_id: GPU.
        options: those of the ``gpu_execution_accelerator`` called "cuda" in config.pbtxt.
        graphs: allow the capture of CUDA graphs.

    Raises:
        DeviceError: ``options`` ask for graphs by themselves.
    """
    if "enable_cuda_graph" in options:
        raise DeviceError(
            "enable_cuda_graph stands in the accelerator's parameters: without shapes every request would be answered "
            "with the first one's graph; give the parameter cuda_graph_shapes instead"
        )
    return {**options, "device_id": str(device_id), **({"enable_cuda_graph": "1"} if graphs else {})}


def check_on_gpu(session: Any) -> None:
    """ONNX Runtime opens a session on the CPU, with no more than a line in its log, where CUDA cannot be loaded.

    Raises:
        DeviceError: it did so.
    """
    if PROVIDER not in session.get_providers():
        raise DeviceError(
            f"a GPU is asked for, but onnxruntime {ort.__version__} opened the model on the CPU: a library of CUDA or "
            "the driver is missing; its own log, above, names it"
        )


class BoundRunner:
    """Runs feeds of one session: fixed shapes in tensors that stay on the device, all others as they come.

    Args:
        session: of a cross-encoder with the output "logits".
        shapes: rows and width of the tensors that are held; each is run, compared and, on a GPU, captured here.
        device: "cuda"; "cpu" binds the same way without graphs.
        device_id: GPU.

    Raises:
        DeviceError: a shape gives other logits bound than unbound. ONNX Runtime's own errors pass.
    """

    def __init__(self, session: Any, shapes: Sequence[Shape], *, device: str = "cuda", device_id: int = 0) -> None:
        self._session = session
        self._without_graph = _run_options(_NO_GRAPH) if shapes and device == "cuda" else None
        ordered = sorted(set(shapes), key=lambda shape: (shape[0] * shape[1], shape))
        self._held = [
            _Held(session, shape, device, device_id, _run_options(number) if device == "cuda" else None)
            for number, shape in enumerate(ordered, start=1)
        ]
        for held in self._held:
            self._prove(held)

    def run(self, feed: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Logits of one feed.

        Args:
            feed: input name -> integers ``(n, width)``.

        Returns:
            float32 ``(n, 1)``.
        """
        rows, width = feed[MASK].shape
        held = next((held for held in self._held if rows <= held.shape[0] and width <= held.shape[1]), None)
        return held.run(feed) if held else self._unbound(feed)

    def _unbound(self, feed: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self._session.run([LOGITS], dict(feed), self._without_graph)[0]
        return logits

    def _prove(self, held: _Held) -> None:
        """The first run captures; the second, with other content, must give what an ordinary run gives."""
        held.run(_trial(held, step=0))
        feed = _trial(held, step=3)
        difference = float(np.abs(held.run(feed) - self._unbound(feed)).max())
        if not difference <= _TOLERANCE:
            rows, width = held.shape
            raise DeviceError(
                f"cuda_graph_shapes: {rows}x{width} gives logits that are {difference:g} off those of an ordinary run, "
                f"more than {_TOLERANCE:g}; leave that shape out"
            )


class _Held:
    """Tensors of one shape on the device, bound to the session."""

    def __init__(self, session: Any, shape: Shape, device: str, device_id: int, options: Any) -> None:
        self.shape = shape
        self._session, self._options = session, options
        self._binding = session.io_binding()
        self.staging = {node.name: np.zeros(shape, _DTYPES[node.type]) for node in session.get_inputs()}
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(shape, array.dtype.type, device, device_id)
            for name, array in self.staging.items()
        }
        self._logits = ort.OrtValue.ortvalue_from_shape_and_type((shape[0], 1), np.float32, device, device_id)
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(LOGITS, self._logits)

    def run(self, feed: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Compute one batch through the buffers that are bound, and return a copy of its logits."""
        rows, width = feed[MASK].shape
        for name, staging in self.staging.items():
            staging[:rows, :width] = feed[name]
            staging[:rows, width:] = 0
            staging[rows:] = 0
            if name == MASK:
                staging[rows:, 0] = 1  # a row that is all padding has no softmax
            self._inputs[name].update_inplace(staging)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        logits: npt.NDArray[np.float32] = self._logits.numpy()[:rows].copy()  # the next run writes over it
        return logits


def _trial(held: _Held, *, step: int) -> dict[str, npt.NDArray[Any]]:
    """A feed of the whole shape with the ids 0, whose rows have different lengths unless ``step`` is 0."""
    rows, width = held.shape
    lengths = width - (np.arange(rows) * step) % width
    feed = {name: np.zeros_like(array) for name, array in held.staging.items()}
    feed[MASK][:] = np.arange(width) < lengths[:, None]
    return feed


def _run_options(graph_id: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
