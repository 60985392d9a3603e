"""The files of a model repository through the code that runs inside Triton, in process.

A graph with operators that ONNX Runtime has for CUDA alone is computed on a CPU by onnx's reference evaluator. Each
operator gives its output's own type, so what fp16 rounds is rounded; sums are made in fp32, as CUDA's kernels make
them. It is slow, and for the gate and tests alone: what a kernel does, only a GPU shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from triton_rerank.contract import LOGITS
from triton_rerank_export.repository.triton_config import ServedModel
from triton_rerank_server.backends.encoder.engine import Engine, options_of
from triton_rerank_server.backends.encoder.onnxruntime_session import CPU_TOKENS, cuda_available
from triton_rerank_server.backends.encoder.session import EngineError
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer


class LogitEngine(Protocol):
    """What scores tensors: ours, over ONNX Runtime or OpenVINO, or TensorRT's."""

    def logits(self, requests: Sequence[Mapping[str, npt.NDArray[np.int64]]]) -> list[npt.NDArray[np.float32]]:
        """Per request, input name -> ``(n, padded length)``; gives ``(n, 1)`` a request."""


class ServedScorer:
    """Scores pairs from text as the served model would; the session opens at the first logits.

    Args:
        repository: model repository.
        model: the model's data.

    Raises:
        PairError: the tokenizer file cannot be used.
    """

    def __init__(self, repository: Path, model: ServedModel) -> None:
        self._version_folder = repository / model.encoder_name / str(model.version)
        self._model = model
        self.tokenizer = PairTokenizer.of_parameters(
            repository / model.tokenizer_name / str(model.version) / "tokenizer.json", model.tokenizer_parameters
        )

    def logits(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits of one query with n documents: float32 ``(n,)``.

        Raises:
            EngineError: the graph cannot be loaded, or does not take the tensors.
        """
        tensors = self.tokenizer.encode(query, documents)
        return self._engine.logits([{name: getattr(tensors, name) for name in self._model.tensors}])[0][:, 0]

    @cached_property
    def _engine(self) -> LogitEngine:
        path = self._version_folder / self._model.graph_file
        if self._model.engine == "tensorrt":
            from triton_rerank_export.tensorrt.profiles import profiles
            from triton_rerank_export.tensorrt.tensorrt_package import PlanEngine

            return PlanEngine(path, profiles(self._model.ladder, self._model.max_batch_size))
        # a CPU computes fp16 in fp32, so only a GPU shows what fp16 does
        on_gpu = self._model.precision == "fp16" and cuda_available()
        if self._model.packed and not on_gpu:
            return Engine(path, EvaluatedOptions())
        return Engine(
            path,
            options_of(
                self._model.engine,
                self._model.parameters,
                device_id=0 if on_gpu else None,
                cuda_options=self._model.cuda_options,
            ),
        )


Array = npt.NDArray[Any]


class EvaluatedOptions:
    """Opens a graph in the evaluator."""

    def open(self, model_file: str) -> EvaluatedSession:
        """Load a graph."""
        return EvaluatedSession(model_file)


class EvaluatedSession:
    """A graph in onnx's reference evaluator, as the engine takes it.

    Args:
        model_file: ``model.onnx``.
    """

    micro_batch_tokens = CPU_TOKENS
    batch_cost_tokens = CPU_TOKENS
    length_step = 1

    def __init__(self, model_file: str) -> None:
        model = onnx.load(model_file)
        operators = [Erf, Gemm, LayerNormalization, PackedMultiHeadAttention]
        self._evaluator = ReferenceEvaluator(model, new_ops=operators)
        self.input_names: list[str] = list(self._evaluator.input_names)
        self.output_names: list[str] = list(self._evaluator.output_names)

    def run(self, inputs: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """As `Session.run`.

        Raises:
            EngineError: an operator does not take its tensors.
        """
        return np.asarray(self.tensors(inputs)[LOGITS], dtype=np.float32)

    def tensors(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Name -> value of every tensor of a run.

        Raises:
            EngineError: an operator does not take its tensors.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what passes fp16's range is seen in the logits
                return dict(self._evaluator.run(None, dict(inputs), intermediate=True))
        except Exception as exc:  # whatever NumPy raises
            raise EngineError(f"the reference evaluator failed ({str(exc) or repr(exc)})") from exc


class PackedMultiHeadAttention(OpRun):
    """ONNX Runtime's operator, in the form without bias, and what its schema says of its inputs."""

    op_domain = "com.microsoft"

    def _run(
        self, query: Array, key: Array, value: Array, _bias: None, offsets: Array, bounds: Array, num_heads: int
    ) -> tuple[Array]:
        check_places(offsets, bounds, len(query))
        out = np.empty_like(query)
        for start, end in itertools.pairwise(bounds.tolist()):
            heads = (
                some[start:end].astype(np.float32).reshape(end - start, num_heads, -1).transpose(1, 0, 2)
                for some in (query, key, value)
            )
            out[start:end] = _attended(*heads).transpose(1, 0, 2).reshape(end - start, -1)
        return (out,)


class Gemm(OpRun):
    """The standard operator; NumPy's own product of fp16 matrices is a hundred times slower."""

    def _run(self, a: Array, b: Array, c: Array | None = None, **attributes: Any) -> tuple[Array]:
        left, right = a.astype(np.float32), b.astype(np.float32)
        product = left @ (right.T if attributes["transB"] else right)
        return ((product if c is None else product + c).astype(a.dtype),)


class LayerNormalization(OpRun):
    """The standard operator, over the last axis."""

    def _run(self, x: Array, scale: Array, bias: Array, epsilon: float, **_: Any) -> tuple[Array]:
        wide = x.astype(np.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(epsilon))
        return ((normed * scale + bias).astype(x.dtype),)


class Erf(OpRun):
    """The standard operator by Abramowitz and Stegun 7.1.26, to 1.5e-7; the evaluator's own computes one by one."""

    def _run(self, x: Array) -> tuple[Array]:
        wide = np.abs(x.astype(np.float64))
        t = 1 / (1 + 0.3275911 * wide)
        sums = np.polyval([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0], t)
        return ((np.sign(x) * (1 - sums * np.exp(-(wide**2)))).astype(x.dtype),)


def check_places(offsets: Array, bounds: Array, tokens: int) -> None:
    """The first places are those of the tokens in a rectangle, those of the padding follow: each place once.

    Raises:
        ValueError: they are not.
    """
    rows, longest = offsets.shape
    lengths = np.diff(bounds)
    live = (np.arange(longest) < lengths[:, None]).ravel()
    expected = np.concatenate([np.flatnonzero(live), np.flatnonzero(~live)])
    if (rows, longest) != (len(lengths), lengths.max()) or bounds[-1] != tokens or (offsets.ravel() != expected).any():
        raise ValueError(f"token_offset {offsets.tolist()} does not belong to rows of {lengths.tolist()} tokens")


def _attended(query: Array, key: Array, value: Array) -> Array:
    """One row: float32 ``(heads, tokens, size)`` each."""
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray((weights / weights.sum(axis=-1, keepdims=True)) @ value)
