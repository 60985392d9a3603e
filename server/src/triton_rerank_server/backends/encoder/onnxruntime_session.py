"""ONNX Runtime behind the engine: fp32, fp16 and int8 on a CPU, or CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .session import WIDTHS, EngineError, Ids, TensorError, whole

if TYPE_CHECKING:
    from .cuda import BoundRunner

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read as it is imported; else it calls its maker's servers

CPU_TOKENS = 1024  # padded tokens of a micro-batch that fit the caches of a CPU
CPU_BATCH_COST_TOKENS = 55
GPU_TOKENS = 65536  # a GPU is fed by large batches
GPU_BATCH_COST_TOKENS = 4096  # by arithmetic: 0.3 ms for six layers 384 wide, about what launching their kernels takes

_COUNTS = ("intra_op_thread_count", "inter_op_thread_count", "execution_mode", "micro_batch_tokens")
_SWITCHES = ("enable_mem_arena", "enable_mem_pattern")
_CPU_INFO = Path("/proc/cpuinfo")
_VNNI_FLAGS = {"avx512_vnni", "avx_vnni"}
_GRAPH_LEVELS = {  # NVIDIA's backend: optimization { graph { level } }
    0: "ORT_ENABLE_ALL",
    -1: "ORT_ENABLE_BASIC",
    1: "ORT_ENABLE_EXTENDED",
    2: "ORT_DISABLE_ALL",
}


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """Settings with the names and meanings of NVIDIA's ONNX Runtime backend.

    Attributes:
        intra_op_thread_count: threads inside an operator; 0 means one a physical core.
        inter_op_thread_count: threads across operators; only with ``execution_mode`` 1.
        execution_mode: 0 sequential, 1 parallel.
        graph_level: 0 all optimisations, −1 basic, 1 extended, 2 none.
        enable_mem_arena: keep freed memory for the next run.
        enable_mem_pattern: plan memory once per shape.
        device_id: CUDA device, or None for the CPU.
        micro_batch_tokens: padded tokens that are computed at once; 0 means `CPU_TOKENS` or `GPU_TOKENS`.
        cuda_graph_shapes: shapes whose tensors stay on the device, on a GPU as CUDA graphs, such as "1x32,8x128".
        cuda_options: of the CUDA provider, by its own names.
    """

    intra_op_thread_count: int = 0
    inter_op_thread_count: int = 0
    execution_mode: int = 0
    graph_level: int = 0
    enable_mem_arena: bool = True
    enable_mem_pattern: bool = True
    device_id: int | None = None
    micro_batch_tokens: int = 0
    cuda_graph_shapes: str = ""
    cuda_options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_parameters(
        cls,
        parameters: Mapping[str, str],
        *,
        graph_level: int = 0,
        device_id: int | None = None,
        cuda_options: Mapping[str, str] | None = None,
    ) -> OnnxRuntimeOptions:
        """Read a config.pbtxt's parameters.

        Raises:
            EngineError: a value is out of its bounds.
        """
        counts: dict[str, Any] = {key: whole(key, parameters[key]) for key in _COUNTS if key in parameters}
        switches: dict[str, Any] = {key: bool(whole(key, parameters[key])) for key in _SWITCHES if key in parameters}
        return cls(
            **counts,
            **switches,
            graph_level=graph_level,
            device_id=device_id,
            cuda_graph_shapes=parameters.get("cuda_graph_shapes", ""),
            cuda_options=cuda_options or {},
        )

    def open(self, model_file: str) -> OnnxRuntimeSession:
        """Open a session.

        Raises:
            EngineError: the file is missing or broken, or a setting is unknown.
        """
        return OnnxRuntimeSession(model_file, self)


class OnnxRuntimeSession:
    """One ONNX Runtime session.

    Args:
        model_file: ``model.onnx``.
        options: settings.
    """

    length_step = 1

    def __init__(self, model_file: str, options: OnnxRuntimeOptions) -> None:
        import onnxruntime as ort
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        self._refusal: type[Exception] = InvalidArgument  # told of shapes, and of ids outside a table
        settings, providers = _settings(ort, options), _providers(options)
        try:
            self._session = ort.InferenceSession(model_file, settings, providers=providers)
        except Exception as exc:  # its errors share no base
            raise EngineError(f"{model_file}: ONNX Runtime cannot load it ({exc}); export the model again") from exc
        on_cpu = options.device_id is None
        self.micro_batch_tokens = options.micro_batch_tokens or (CPU_TOKENS if on_cpu else GPU_TOKENS)
        self.batch_cost_tokens = CPU_BATCH_COST_TOKENS if on_cpu else GPU_BATCH_COST_TOKENS
        self.input_names: list[str] = [node.name for node in self._session.get_inputs()]
        self.output_names: list[str] = [node.name for node in self._session.get_outputs()]
        self._runner = _runner(self._session, options)

    def run(self, inputs: Mapping[str, Ids]) -> npt.NDArray[np.float32]:
        """Input name -> int64 ``(n, padded length)``; gives logits ``(n, 1)``.

        Raises:
            TensorError: ONNX Runtime refuses the tensors, for example a token id outside the vocabulary.
            EngineError: it failed: out of memory, a device that is gone.
        """
        try:
            if self._runner:
                return self._runner.run(inputs)
            logits: npt.NDArray[np.float32] = self._session.run(["logits"], dict(inputs))[0]
        except self._refusal as exc:
            raise TensorError(f"ONNX Runtime cannot score these tensors ({exc})") from exc
        except Exception as exc:  # its errors share no base, and Python's MemoryError is one of them
            raise EngineError(f"ONNX Runtime failed ({str(exc) or repr(exc)})") from exc
        return logits


def _settings(ort: Any, options: OnnxRuntimeOptions) -> Any:
    if options.graph_level not in _GRAPH_LEVELS:
        raise EngineError(f"optimization.graph.level is {options.graph_level}: it must be one of -1, 0, 1, 2")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.intra_op_thread_count
    settings.inter_op_num_threads = options.inter_op_thread_count
    settings.execution_mode = ort.ExecutionMode(options.execution_mode)
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _GRAPH_LEVELS[options.graph_level])
    settings.enable_cpu_mem_arena = options.enable_mem_arena
    settings.enable_mem_pattern = options.enable_mem_pattern
    if int8_saturates():  # where it does not, this would double the time
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return settings


def _providers(options: OnnxRuntimeOptions) -> list[Any]:
    if options.device_id is None:
        return ["CPUExecutionProvider"]
    from . import cuda

    cuda.load_libraries()
    settings = cuda.provider_options(options.device_id, options.cuda_options, graphs=bool(options.cuda_graph_shapes))
    return [(cuda.PROVIDER, settings), "CPUExecutionProvider"]


def _runner(session: Any, options: OnnxRuntimeOptions) -> BoundRunner | None:
    """None where an ordinary run is all that is wanted."""
    if options.device_id is None and not options.cuda_graph_shapes:
        return None
    from . import cuda

    shapes = cuda.parse_shapes(options.cuda_graph_shapes)
    if options.device_id is not None:
        cuda.check_on_gpu(session)
    if not shapes:
        return None
    if WIDTHS in [node.name for node in session.get_inputs()]:
        raise EngineError(f"cuda_graph_shapes is {options.cuda_graph_shapes!r}: a flat graph has no shapes to hold")
    if options.device_id is None:
        return cuda.BoundRunner(session, shapes, device="cpu")
    return cuda.BoundRunner(session, shapes, device_id=options.device_id)


def int8_saturates() -> bool:
    """True on x86 CPUs without VNNI: they add pairs of int8 products in 16 bits, which overflow."""
    try:
        info = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((set(line.split()) for line in info.splitlines() if line.startswith("flags")), set())
    return bool(flags) and not flags & _VNNI_FLAGS


def cuda_available() -> bool:
    """True if this ONNX Runtime has the CUDA provider, and the driver's library is here."""
    import ctypes

    import onnxruntime as ort

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return "CUDAExecutionProvider" in ort.get_available_providers()
