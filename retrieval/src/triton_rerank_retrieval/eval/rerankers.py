"""Opens the rerankers that are measured, each only when a pair is missing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from triton_rerank import (
    CohereScorer,
    ConfigurationError,
    JinaScorer,
    LocalScorer,
    RerankClient,
    Scorer,
    TritonScorer,
    VoyageScorer,
)
from triton_rerank.extending import Call, PairRequest, Scored
from triton_rerank.repository import exported_models
from triton_rerank_retrieval.eval.plan import RerankerSpec
from triton_rerank_retrieval.files import digest_of, file_digest

_HOSTED: dict[str, Callable[..., Scorer]] = {"cohere": CohereScorer, "jina": JinaScorer, "voyage": VoyageScorer}


class CrossEncoderScorer:
    """A sentence-transformers CrossEncoder in this process, on the CPU at its defaults.

    Args:
        model: folder or id.

    Raises:
        ConfigurationError: it cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import CrossEncoder

            self._model: Any = CrossEncoder(model, device="cpu")
        except (ImportError, OSError, ValueError) as exc:
            raise ConfigurationError(f"{model[:80]} cannot be loaded by sentence-transformers: {exc}") from exc
        self.name = self.model = f"sentence-transformers/{Path(model).name}"

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Score; the deadline is looked at before, not during."""
        left_s = call.deadline.left_s(doing="the model was asked")
        pairs = [(request.query.decode(), document.decode()) for document in request.documents]
        values = await call.runtime.in_thread(
            lambda: self._model.predict(pairs, show_progress_bar=False), timeout_s=left_s
        )
        scores = np.asarray(values, np.float64)
        return Scored(self.model, self.name, None, scores, np.zeros(len(pairs), np.bool_), 0)

    async def is_ready(self, call: Call) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing is held."""

    async def aclose(self) -> None:
        """Nothing is held."""


class OpenRerankers:
    """Opens each reranker once, and closes all at the end of the ``with``.

    Args:
        on_progress: called with a short text at each step.
    """

    def __init__(self, on_progress: Callable[[str], None]) -> None:
        self._on_progress = on_progress
        self._stack = ExitStack()
        self._open: dict[str, Scorer] = {}

    def __enter__(self) -> OpenRerankers:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    def get(self, spec: RerankerSpec) -> Scorer:
        """The scorer; its server is started if it is not yet."""
        if spec.name not in self._open:
            scorer = self._make(spec)
            self._stack.callback(scorer.close)
            self._open[spec.name] = scorer
        return self._open[spec.name]

    def _make(self, spec: RerankerSpec) -> Scorer:
        if spec.kind == "triton":
            target = spec.target or self._serve(spec)
            return TritonScorer(target, model_name(spec))
        if spec.kind == "local":
            return LocalScorer(spec.repository, model_name(spec))
        if spec.kind == "sentence-transformers":
            return CrossEncoderScorer(spec.model)
        if spec.kind in _HOSTED:
            return _HOSTED[spec.kind](model=spec.model)
        if spec.kind == "llm":
            from triton_rerank_retrieval.llm import Endpoint, PointwiseScorer  # the SDK, only where it is wanted

            return PointwiseScorer(Endpoint(spec.model, base_url=spec.base_url or None))
        raise ConfigurationError(f"reranker {spec.name}: the kind {str(spec.kind)[:80]!r} is not known")

    def _serve(self, spec: RerankerSpec) -> str:
        try:
            from triton_rerank_server import ServerConfig, TritonServer
        except ImportError as exc:
            raise ConfigurationError("a repository needs pip install triton-rerank-server; or give target") from exc
        config = ServerConfig(model_repository=Path(spec.repository), grpc_port=0, http_port=0, metrics_port=0)
        return str(self._stack.enter_context(TritonServer(config, on_progress=self._on_progress)).grpc_target)


def model_name(spec: RerankerSpec) -> str:
    """The public model name.

    Raises:
        ConfigurationError: the repository is not there, or holds none or several.
    """
    if spec.model or spec.target:
        return spec.model
    folder = Path(spec.repository)
    models = exported_models(folder) if folder.is_dir() else []
    if len(models) != 1:
        held = ", ".join(models) or "none"
        raise ConfigurationError(f"--model-repository {folder}: one model is expected, {held} are there; give --model")
    return models[0]


def identity(spec: RerankerSpec) -> str:
    """Names a model with all that changes its scores.

    Raises:
        RerankError: its server does not answer, or its folder is not there.
    """
    if spec.target:
        with RerankClient(spec.target, model=spec.model) as client:
            return repr(client.model_info())
    if spec.repository:
        name = model_name(spec)
        files = sorted(Path(spec.repository).glob(f"{name}*/config.pbtxt")) + sorted(
            Path(spec.repository).glob(f"{name}/*/manifest.json")
        )
        return digest_of(name, *map(file_digest, files))
    weights = sorted(Path(spec.model).glob("*.safetensors")) if Path(spec.model).is_dir() else []
    return digest_of(spec.kind, spec.model, spec.base_url, *map(file_digest, weights))
