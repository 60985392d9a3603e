"""TensorRT through its Python package: builds a plan, and runs one with PyTorch's tensors as buffers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank.contract import LOGITS
from triton_rerank_export.errors import ExportError
from triton_rerank_export.tensorrt.profiles import Profile, profile_index

_SHOWN_ERRORS = 3

Ids = npt.NDArray[np.int64]


class NoEngineError(ExportError):
    """TensorRT read the graph and built no engine of it; holds its words."""


def load() -> Any:
    """The package, or None. ``tensorrt_bindings`` alone uses the TensorRT libraries that the container has."""
    for name in ("tensorrt", "tensorrt_bindings"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def build(graph: Path, output: Path, *, inputs: Sequence[str], profiles: Sequence[Profile], timing_cache: Path) -> None:
    """Build a plan; types are the graph's.

    Args:
        graph: ONNX file of standard operators.
        output: the plan.
        inputs: names of the graph's inputs, each ``(n, length)``.
        profiles: in the order of their indices.
        timing_cache: read if it is there, and written.

    Raises:
        NoEngineError: no engine could be built.
        ExportError: the parser refuses the graph; holds TensorRT's words.
    """
    trt = load()
    errors: list[str] = []
    logger = _logger(trt, errors)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        words = [f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in found]
        raise ExportError(f"{graph.name}: TensorRT cannot read it: {_last(words)}")
    config = builder.create_builder_config()
    for profile in profiles:
        _add_profile(builder, config, inputs, profile)
    cache = _attach_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise NoEngineError(f"{graph.name}: TensorRT built no engine: {_last(errors)}")
    output.write_bytes(plan)
    timing_cache.write_bytes(cache.serialize())


class PlanEngine:
    """Scores tensors with a plan on the current CUDA device; the interface of the engine that serves without TensorRT.

    Args:
        plan: as `build` writes it.
        profiles: that it was built with.

    Raises:
        ExportError: this TensorRT or this GPU cannot run the plan, or its logits are not fp32.
    """

    def __init__(self, plan: Path, profiles: Sequence[Profile]) -> None:
        import torch

        trt = load()
        self._profiles = profiles
        self._errors: list[str] = []
        self._logger = _logger(trt, self._errors)
        self._runtime = trt.Runtime(self._logger)  # both must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise ExportError(f"{plan}: TensorRT cannot load it: {_last(self._errors)}")
        dtype = self._engine.get_tensor_dtype(LOGITS)
        if dtype != trt.DataType.FLOAT:
            raise ExportError(f"{plan}: its {LOGITS} are {dtype}, Triton's config declares FP32; export it again")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def logits(self, requests: Sequence[Mapping[str, Ids]]) -> list[npt.NDArray[np.float32]]:
        """Score the pairs of several requests.

        Args:
            requests: per request, input name -> int64 ``(n, padded length)``.

        Returns:
            Per request, float32 ``(n, 1)``, rows in the order given.

        Raises:
            ExportError: no profile takes the length, or TensorRT fails.
        """
        return [self._score(request) for request in requests]

    def _score(self, request: Mapping[str, Ids]) -> npt.NDArray[np.float32]:
        n, length = next(iter(request.values())).shape
        index = profile_index(self._profiles, n, length)
        most = self._profiles[index].maximum[0]
        parts = ({name: ids[start : start + most] for name, ids in request.items()} for start in range(0, n, most))
        return np.concatenate([self._run(index, rows) for rows in parts])

    def _run(self, profile: int, tensors: Mapping[str, Ids]) -> npt.NDArray[np.float32]:
        """Logits ``(n, 1)`` of tensors ``(n, length)`` that fit the profile."""
        import torch

        context, stream = self._context, self._stream
        device = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in tensors.items()}
        logits = torch.empty((len(next(iter(tensors.values()))), 1), dtype=torch.float32, device="cuda")
        torch.cuda.synchronize()  # the copies ran on another stream
        done = [context.set_optimization_profile_async(profile, stream.cuda_stream)]
        for name, tensor in device.items():
            done.append(context.set_input_shape(name, tuple(tensor.shape)))
            done.append(context.set_tensor_address(name, tensor.data_ptr()))
        done.append(context.set_tensor_address(LOGITS, logits.data_ptr()))
        if not all(done) or not context.execute_async_v3(stream.cuda_stream):
            raise ExportError(f"TensorRT does not run the plan's profile {profile}: {_last(self._errors)}")
        stream.synchronize()
        result: npt.NDArray[np.float32] = logits.cpu().numpy()
        return result


def _logger(trt: Any, errors: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT says of an error; its calls only return None or False."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Keep TensorRT's errors, and nothing else."""
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                errors.append(message)

    return Logger()


def _last(errors: Sequence[str]) -> str:
    return " | ".join(" ".join(error.split()) for error in errors[-_SHOWN_ERRORS:]) or "it gives no reason"


def _add_profile(builder: Any, config: Any, inputs: Sequence[str], profile: Profile) -> None:
    wanted = builder.create_optimization_profile()
    for name in inputs:
        wanted.set_shape(name, profile.minimum, profile.optimum, profile.maximum)
    if config.add_optimization_profile(wanted) < 0:
        raise ExportError(f"TensorRT refuses the profile {profile.minimum} to {profile.maximum} of {list(inputs)}")


def _attach_timing_cache(config: Any, path: Path) -> Any:
    """Timings of an earlier build; an empty cache where there are none, or they are of another GPU or version."""
    stored = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache
