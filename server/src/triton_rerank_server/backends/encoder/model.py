"""Triton backend ``rerank_encoder``: all requests of an execution together, in micro-batches (engine.py).

The parameter ``engine`` names the library. The same files stand in for the backends ``onnxruntime`` and ``openvino``
where the native one is absent, with the same config.pbtxt and keys; Triton prefers ``libtriton_<backend>.so``.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - Triton does not put it there

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from encoder.continuous import CancelledError, Continuous, OverloadError
from encoder.engine import Engine, options_of
from encoder.onnxruntime_session import OnnxRuntimeOptions, cuda_available
from encoder.openvino_session import OpenVinoOptions
from encoder.schedule import MOST_WAITING_TOKENS
from encoder.session import EngineError, TensorError, whole
from meters import Meters

METERS = {
    "triton_rerank_micro_batches_total": "Runs of the engine",
    "triton_rerank_computed_pairs_total": "Pairs that it computed",
    "triton_rerank_computed_tokens_total": "Tokens that it computed, padding left out",
    "triton_rerank_padded_tokens_total": "Tokens that it computed, padding included",
}
CONTINUOUS_METERS = {
    "triton_rerank_waited_seconds_total": "Time until the first pair of a request was taken, inside the encoder",
    "triton_rerank_waiting_pairs": "Pairs that wait inside the encoder",
    "triton_rerank_waiting_tokens": "Their tokens",
}


class TritonPythonModel:
    """Triton's interface to `engine.Engine`; one object an instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session of this version and hold its graph against config.pbtxt."""
        config = json.loads(args["model_config"])
        filename = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / filename
        self._engine = Engine(path, _options(config, args))
        _check_names(path, "inputs", self._engine.input_names, config["input"])
        _check_names(path, "outputs", self._engine.output_names, config["output"])
        policy = config.get("dynamic_batching", {}).get("default_queue_policy", {})
        self._timeout_us = int(policy.get("default_timeout_microseconds", 0))
        self._continuous: Continuous | None = None
        if _is_continuous(config):
            parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
            most = whole("max_waiting_tokens", parameters.get("max_waiting_tokens", str(MOST_WAITING_TOKENS)))
            most_requests = int(policy.get("max_queue_size", 0))
            self._continuous = Continuous(self._engine, most_tokens=most, most_requests=most_requests)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        texts = {**METERS, **(CONTINUOUS_METERS if self._continuous else {})}
        self._meters = Meters(pb_utils, labels, texts, self._counts)

    def finalize(self) -> None:
        """Answer what waits, and end."""
        if self._continuous:
            self._continuous.close()
        self._meters.close()

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer every request of one execution, in order."""
        names = self._engine.input_names
        if self._continuous:
            bounded = not self._continuous.is_idle()
            for request in requests:
                self._put(self._continuous, request, bounded)
            return None  # each is answered through its response sender
        inputs = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names}
            for request in requests
        ]
        try:
            return [_response(logits) for logits in self._engine.logits(inputs)]
        except Exception:  # noqa: BLE001 - each request tells its own
            return [self._alone(request) for request in inputs]  # the bad one gets its error, the others their answers

    def _counts(self) -> dict[str, float]:
        done = self._engine.computed
        found = dict(zip(METERS, (done.batches, done.pairs, done.tokens, done.padded_tokens), strict=True))
        return found | (dict(zip(CONTINUOUS_METERS, self._continuous.waits(), strict=True)) if self._continuous else {})

    def _put(self, continuous: Continuous, request: Any, bounded: bool) -> None:
        """Bounds of the queue hold for what finds others waiting.

        Triton warms a model up with many requests at once, and dies of a segmentation fault if one of them is refused.
        """
        ticket = _Ticket(request.get_response_sender())
        try:
            inputs = {  # Triton takes its memory back when execute returns
                name: np.array(pb_utils.get_input_tensor_by_name(request, name).as_numpy())
                for name in self._engine.input_names
            }
        except Exception as exc:  # noqa: BLE001 - Triton dies where execute raises beside a request that has a sender
            ticket.failed(exc)
            return
        waits_us = [us for us in (request.timeout(), bounded * self._timeout_us) if us]
        continuous.put(inputs, ticket, timeout_s=min(waits_us, default=math.inf) / 1e6, bounded=bounded)

    def _alone(self, inputs: dict[str, npt.NDArray[np.int64]]) -> Any:
        try:
            return _response(self._engine.logits([inputs])[0])
        except TensorError as exc:
            return _refusal(str(exc), pb_utils.TritonError.INVALID_ARG)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the caller is not to blame
            return _refusal(str(exc) or repr(exc), pb_utils.TritonError.INTERNAL)


class _Ticket:
    """One request of Triton's, answered through its response sender."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def done(self, logits: npt.NDArray[np.float32]) -> None:
        """Answer with logits."""
        self._send(_response(logits))

    def failed(self, error: Exception) -> None:
        """Answer with the error, under the gRPC code of its kind."""
        codes = pb_utils.TritonError
        kinds = {TensorError: codes.INVALID_ARG, OverloadError: codes.UNAVAILABLE, CancelledError: codes.CANCELLED}
        code = next((code for kind, code in kinds.items() if isinstance(error, kind)), codes.INTERNAL)
        self._send(_refusal(str(error) or repr(error), code))

    def is_cancelled(self) -> bool:
        """Whether the caller has gone."""
        return bool(self._sender.is_cancelled())

    def _send(self, response: Any) -> None:
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _response(logits: npt.NDArray[np.float32]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)])


def _options(config: dict[str, Any], args: dict[str, str]) -> OnnxRuntimeOptions | OpenVinoOptions:
    on_gpu = args["model_instance_kind"] == "GPU"
    if on_gpu and not cuda_available():
        raise EngineError(
            f"{args['model_name']}: instance_group asks for a GPU, but this onnxruntime has no CUDA provider, or "
            "there is no driver; install onnxruntime-gpu, or set the kind to KIND_CPU"
        )
    return options_of(
        config["backend"],
        {key: value["string_value"] for key, value in config.get("parameters", {}).items()},
        graph_level=int(config.get("optimization", {}).get("graph", {}).get("level", 0)),
        device_id=int(args["model_instance_device_id"]) if on_gpu else None,
        cuda_options=_cuda_options(config),
    )


def _is_continuous(config: dict[str, Any]) -> bool:
    value = config.get("parameters", {}).get("scheduling", {"string_value": "continuous"})["string_value"]
    if value != "continuous":
        raise EngineError(f"parameter scheduling is {value!r}: it must be 'continuous', or be left out")
    return "scheduling" in config.get("parameters", {})


def _cuda_options(config: dict[str, Any]) -> dict[str, str]:
    """Parameters of the accelerator called "cuda", which are the CUDA provider's options in NVIDIA's backend too."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    found: dict[str, str] = {}
    for accelerator in accelerators:
        if accelerator["name"] == "cuda":
            found |= accelerator.get("parameters", {})
    return found


def _check_names(path: Path, what: str, graph: list[str], declared: list[dict[str, Any]]) -> None:
    names = [tensor["name"] for tensor in declared]
    if sorted(graph) != sorted(names):
        raise EngineError(
            f"{path}: the graph's {what} are {sorted(graph)}, config.pbtxt declares {sorted(names)}; "
            "the config belongs to another model, export it again"
        )
