"""OpenVINO behind the engine: bf16 matrix products where the CPU has them (AMX, AVX-512 BF16).

Measured reasons for what is set here are in docs/LOG.md.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .session import EngineError, Ids, TensorError, whole

_TOKENS = 2048  # padded tokens of a micro-batch
_BATCH_COST_TOKENS, _BATCH_COST_TOKENS_BF16 = 60, 160  # a run costs as long, but bf16 computes a token faster
_LENGTH_STEP = 16  # attention over a length between two multiples costs up to twice as much
_BF16 = "BF16"
_SWITCH = {"YES": True, "NO": False}


@dataclass(frozen=True)
class OpenVinoOptions:
    """Settings with the names and meanings of Triton's OpenVINO backend.

    Attributes:
        inference_num_threads: threads of an inference; 0 means one a physical core.
        num_streams: inferences that run side by side; 0 means what OpenVINO chooses.
        hint_bf16: compute in bf16 where the CPU has instructions for it; elsewhere, and without it, in fp32.
    """

    inference_num_threads: int = 0
    num_streams: int = 1
    hint_bf16: bool = False

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, str]) -> OpenVinoOptions:
        """Read a config.pbtxt's parameters.

        Raises:
            EngineError: a value is out of its bounds.
        """
        hint = parameters.get("HINT_BF16", "NO").upper()
        if hint not in _SWITCH:
            raise EngineError(f"parameter HINT_BF16 is {hint!r}: it must be YES or NO")
        return cls(
            inference_num_threads=whole("INFERENCE_NUM_THREADS", parameters.get("INFERENCE_NUM_THREADS", "0")),
            num_streams=whole("NUM_STREAMS", parameters.get("NUM_STREAMS", "1")),
            hint_bf16=_SWITCH[hint],
        )

    def open(self, model_file: str) -> OpenVinoSession:
        """Load and compile a graph for the CPU.

        Raises:
            EngineError: OpenVINO is not installed, or cannot load the file.
        """
        return OpenVinoSession(model_file, self)


class OpenVinoSession:
    """A compiled graph with one request: callers take turns, as each uses all its threads anyway.

    Args:
        model_file: ``model.onnx`` of standard operators, or ``model.xml``.
        options: settings.
    """

    micro_batch_tokens = _TOKENS
    length_step = _LENGTH_STEP

    def __init__(self, model_file: str, options: OpenVinoOptions) -> None:
        try:
            import openvino
        except ImportError as exc:
            raise EngineError(
                f"{model_file} is served by OpenVINO, which is not installed ({exc}); "
                "pip install 'triton-rerank-server[openvino]'"
            ) from exc
        core = openvino.Core()
        bf16 = options.hint_bf16 and _BF16 in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.batch_cost_tokens = _BATCH_COST_TOKENS_BF16 if bf16 else _BATCH_COST_TOKENS
        try:
            graph = core.read_model(model_file)
            compiled = core.compile_model(graph, "CPU", _properties(options, bf16=bf16))
        except Exception as exc:
            raise EngineError(f"{model_file}: OpenVINO cannot load it ({_last(exc)}); export the model again") from exc
        self.input_names: list[str] = [node.any_name for node in compiled.inputs]
        self.output_names: list[str] = [node.any_name for node in compiled.outputs]
        self._tables = _tables(graph)
        self._request = compiled.create_infer_request()
        self._turn = threading.Lock()

    def run(self, inputs: Mapping[str, Ids]) -> npt.NDArray[np.float32]:
        """Input name -> int64 ``(n, padded length)``; gives logits ``(n, 1)``.

        Raises:
            TensorError: an id is outside its table.
            EngineError: OpenVINO failed: out of memory, a device that is gone.
        """
        for name, rows in self._tables.items():
            if inputs[name].max() >= rows:  # OpenVINO would look beside its table, without a word
                raise TensorError(
                    f"OpenVINO cannot score these tensors ({name} has {inputs[name].max()}, its table {rows} rows)"
                )
        with self._turn:
            try:
                self._request.infer(dict(inputs), share_inputs=True)
                return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)
            except Exception as exc:  # RuntimeError for most things, MemoryError too
                raise EngineError(f"OpenVINO failed ({_last(exc)})") from exc


def _tables(graph: Any) -> dict[str, int]:
    """Rows of the constant table that each input is looked up in."""
    tables: dict[str, int] = {}
    for node in graph.get_ops():
        if node.get_type_name() == "Gather" and (name := _input_name(node.input_value(1).get_node())):
            table = node.input_value(0)
            tables[name] = min(int(table.get_partial_shape()[0].get_length()), tables.get(name, sys.maxsize))
    return tables


def _input_name(node: Any) -> str | None:
    """Name of the input that a node only converts, or None."""
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return str(node.output(0).any_name) if node.get_type_name() == "Parameter" else None


def _last(exc: Exception) -> str:
    """OpenVINO's own reason, which stands behind where it was thrown."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1]


def _properties(options: OpenVinoOptions, *, bf16: bool) -> dict[str, object]:
    given = {"INFERENCE_NUM_THREADS": options.inference_num_threads, "NUM_STREAMS": options.num_streams}
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        **{key: value for key, value in given.items() if value},
    }
