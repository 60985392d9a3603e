"""The files of a model repository through the code that runs inside Triton, in process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from triton_rerank_export.gate.evaluated import EvaluatedOptions
from triton_rerank_export.repository.triton_config import ServedModel
from triton_rerank_server.backends.encoder.engine import Engine, options_of
from triton_rerank_server.backends.encoder.onnxruntime_session import cuda_available
from triton_rerank_server.backends.tokenizer.pairs import PairTensors, PairTokenizer


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

    def encode(self, query: str, documents: Sequence[str]) -> PairTensors:
        """The tensors that the encoder would get for one query with n documents."""
        return self.tokenizer.encode(query, documents)

    def logits(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits of one query with n documents: float32 ``(n,)``.

        Raises:
            EngineError: the graph cannot be loaded, or does not take the tensors.
        """
        tensors = self.encode(query, documents)
        return self._engine.logits([{name: getattr(tensors, name) for name in self._model.tensors}])[0][:, 0]

    @cached_property
    def _engine(self) -> LogitEngine:
        path = self._version_folder / self._model.graph_file
        if self._model.engine == "tensorrt":
            from triton_rerank_export.tensorrt.plans import PlanEngine
            from triton_rerank_export.tensorrt.profiles import profiles

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
