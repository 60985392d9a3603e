"""ONNX Runtime session that scores pairs in micro-batches. Knows nothing of Triton.

On a CPU a batch of about a thousand tokens runs up to three times faster than one large batch, because its
activations stay in the cache, and sorting rows by length first saves the padding (docs/LOG.md has the figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

Ids = npt.NDArray[np.int64]

CPU_TOKENS = 1024  # padded tokens of a micro-batch that fit the caches of a CPU
GPU_TOKENS = 65536  # a GPU is fed by large batches

_ORT_ERRORS = (  # they share no base but Exception
    ort_state.EPFail,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)

_CPU_INFO = Path("/proc/cpuinfo")
_VNNI_FLAGS = {"avx512_vnni", "avx_vnni"}
_GRAPH_LEVELS = {  # NVIDIA's backend: optimization { graph { level } }
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class EngineError(ValueError):
    """A model or a setting that cannot be used; the message names the file, the value and the bound."""


@dataclass(frozen=True)
class EngineOptions:
    """Settings with the names and meanings of NVIDIA's ONNX Runtime backend.

    Attributes:
        intra_op_thread_count: threads inside an operator; 0 means one a physical core.
        inter_op_thread_count: threads across operators; only with ``execution_mode`` 1.
        execution_mode: 0 sequential, 1 parallel.
        graph_level: 0 all optimisations, −1 basic, 1 extended, 2 none.
        enable_mem_arena: keep freed memory for the next run.
        enable_mem_pattern: plan memory once per shape.
        device_id: CUDA device, or None for the CPU.
    """

    intra_op_thread_count: int = 0
    inter_op_thread_count: int = 0
    execution_mode: int = 0
    graph_level: int = 0
    enable_mem_arena: bool = True
    enable_mem_pattern: bool = True
    device_id: int | None = None


@dataclass(frozen=True)
class Rows:
    """Model inputs of n pairs, right-padded to one width: input name -> int64 ``(n, width)``."""

    inputs: Mapping[str, Ids]
    lengths: npt.NDArray[np.intp] = field(init=False)  # (n,) tokens a row

    def __post_init__(self) -> None:
        mask = self.inputs["attention_mask"] != 0
        last = mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)  # after the last 1, holes or not
        object.__setattr__(self, "lengths", np.where(mask.any(axis=1), last, 1))


class Engine:
    """One ONNX Runtime session of a one-logit cross-encoder.

    Args:
        model_file: ``model.onnx``.
        options: session settings.

    Raises:
        EngineError: the file is missing or broken, or a setting is unknown.
    """

    def __init__(self, model_file: Path, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        self._session = _open_session(model_file, options)
        self._micro_batch_tokens = CPU_TOKENS if options.device_id is None else GPU_TOKENS
        self.input_names: list[str] = [node.name for node in self._session.get_inputs()]
        self.output_names: list[str] = [node.name for node in self._session.get_outputs()]

    def logits(self, requests: Sequence[Mapping[str, Ids]]) -> list[npt.NDArray[np.float32]]:
        """Score the pairs of several requests together.

        Args:
            requests: per request, input name -> int64 ``(n, padded length)``; right-padded, lengths may differ
                between requests.

        Returns:
            Per request, float32 ``(n, 1)``, rows in the order given.

        Raises:
            EngineError: ONNX Runtime refuses the tensors, for example a token id outside the vocabulary.
        """
        rows = Rows(_stack(requests, self.input_names))
        out = np.empty((len(rows.lengths), 1), dtype=np.float32)
        for batch in micro_batches(rows.lengths, self._micro_batch_tokens):
            width = int(rows.lengths[batch].max())
            feed = {name: np.ascontiguousarray(rows.inputs[name][batch, :width]) for name in self.input_names}
            try:
                out[batch] = self._session.run(["logits"], feed)[0]
            except _ORT_ERRORS as exc:
                raise EngineError(f"ONNX Runtime cannot score these tensors ({exc})") from exc
        ends = np.cumsum([len(request["attention_mask"]) for request in requests])
        return np.split(out, ends[:-1])


def micro_batches(lengths: npt.NDArray[np.intp], budget: int) -> list[npt.NDArray[np.intp]]:
    """Split rows, shortest first, into batches of at most ``budget`` padded tokens (one row may pass it).

    Args:
        lengths: int ``(n,)``, tokens a row.
        budget: tokens a batch, padding to its longest row included.

    Returns:
        Index arrays; together they hold each row once.
    """
    order = np.argsort(lengths, kind="stable")
    batches: list[npt.NDArray[np.intp]] = []
    start = 0
    for end in range(1, len(order) + 1):
        full = end < len(order) and (end + 1 - start) * int(lengths[order[end]]) > budget
        if end == len(order) or full:
            batches.append(order[start:end])
            start = end
    return batches


def _stack(requests: Sequence[Mapping[str, Ids]], names: Sequence[str]) -> dict[str, Ids]:
    if len(requests) == 1:
        return {name: requests[0][name] for name in names}
    width = max(request["attention_mask"].shape[1] for request in requests)
    return {name: np.concatenate([_widen(request[name], width) for request in requests]) for name in names}


def _widen(array: Ids, width: int) -> Ids:
    missing = width - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing))) if missing else array  # padding is cut off again before compute


def _open_session(model_file: Path, options: EngineOptions) -> Any:
    if not model_file.is_file():
        raise EngineError(f"{model_file}: no such file; export the model again")
    if options.graph_level not in _GRAPH_LEVELS:
        raise EngineError(f"optimization.graph.level is {options.graph_level}: it must be one of -1, 0, 1, 2")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.intra_op_thread_count
    settings.inter_op_num_threads = options.inter_op_thread_count
    settings.execution_mode = ort.ExecutionMode(options.execution_mode)
    settings.graph_optimization_level = _GRAPH_LEVELS[options.graph_level]
    settings.enable_cpu_mem_arena = options.enable_mem_arena
    settings.enable_mem_pattern = options.enable_mem_pattern
    if int8_saturates():  # where it does not, this would double the time
        settings.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(model_file), settings, providers=_providers(options.device_id))
    except _ORT_ERRORS as exc:
        raise EngineError(f"{model_file}: ONNX Runtime cannot load it ({exc}); export the model again") from exc


def _providers(device_id: int | None) -> list[Any]:
    if device_id is None:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": device_id}), "CPUExecutionProvider"]


def int8_saturates() -> bool:
    """True on x86 CPUs without VNNI: they add pairs of int8 products in 16 bits, which overflow."""
    try:
        info = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((set(line.split()) for line in info.splitlines() if line.startswith("flags")), set())
    return bool(flags) and not flags & _VNNI_FLAGS


def cuda_available() -> bool:
    """True if this ONNX Runtime has the CUDA provider."""
    return "CUDAExecutionProvider" in ort.get_available_providers()
