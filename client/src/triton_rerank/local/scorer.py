"""Scores pairs in this process, from the files that Triton serves: what is left when every server is gone.

All work is done in threads of the scorer's own: a caller whose deadline passes leaves at once, whatever its thread is
doing, and the thread stops after the micro-batch that it computes.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from triton_rerank.core.numbers import whole
from triton_rerank.core.ranking import activate
from triton_rerank.core.remade import Remade
from triton_rerank.core.scorer import Call, PairRequest, Scored, in_time
from triton_rerank.errors import ConfigurationError, RerankError
from triton_rerank.local.model import Model, artefacts_of, not_installed, open_model, score_pairs
from triton_rerank.types import ModelInfo

T = TypeVar("T")

_WORKERS = 4  # calls that compute at a time; more would only slow each other down


class LocalScorer(Remade):
    """One model of a model repository, in process; safe to share between threads.

    The first call that needs the model loads it, which takes from a quarter of a second to several seconds by its
    size. Call `load` at start where that is too late, and to find mistakes before the fallback is needed. Deadlines
    hold while it loads, too: the call ends, the loading goes on for the next one.

    Args:
        model_repository: folder as written by triton-rerank-export.
        model: public model name, the ensemble's; its encoder must be made for ONNX Runtime or OpenVINO.
        name: what results and logs call this scorer; None means "local".
        threads: threads that one call computes with; 0 means what config.pbtxt says, or one a physical core. The
            tokenizer uses every core unless ``TOKENIZERS_PARALLELISM=false`` is set.

    Raises:
        ConfigurationError: the extra ``local`` is not installed, or ``threads`` is below 0.
    """

    def __init__(self, model_repository: str | Path, model: str, *, name: str | None = None, threads: int = 0) -> None:
        threads = whole("threads", threads, least=0, must="0 (one a physical core) or more")
        if importlib.util.find_spec("triton_rerank_server") is None:
            raise not_installed("no module triton_rerank_server")
        self.model_repository = Path(model_repository)
        self.model = model
        self.name = name or "local"
        self._threads = threads
        self._loaded: Model | None = None
        self._load_lock = threading.Lock()  # held while a model loads
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._pid = os.getpid()  # of the process that the pool and the model belong to

    def load(self) -> None:
        """Load the active version, unless one is loaded. Blocks: inside an event loop use ``asyncio.to_thread``.

        Raises:
            ConfigurationError: the repository, the model or a file of it is missing or broken, its encoder is no ONNX
                model, or this process was forked from the one that used the scorer.
        """
        self._submit(self._model).result()

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Score every document of the request.

        Raises:
            InvalidRequestError: a ``max_`` length is outside the model's bounds, or it takes no such instruction.
            DeadlineExceededError: the deadline passed first.
            ConfigurationError: as `load`.
            InferenceError: the tokenizer or the engine failed.
            InvalidResponseError: a logit is not finite.
        """
        doing = f"{self.name} had scored {len(request.documents)} documents"
        return await self._in_time(partial(self._answer, request), call, doing=doing)

    async def model_info(self, call: Call) -> ModelInfo:
        """Activation, limits and version, read anew; if they have changed, the next score loads what is active now.

        Raises:
            ConfigurationError: as `load`.
            DeadlineExceededError: the deadline passed first.
        """
        return await self._in_time(self._reread, call, doing=f"{self.name} had read the model's config")

    async def is_ready(self, call: Call) -> bool:
        """True if the model is loaded, or could be loaded within the deadline."""
        try:
            await self._in_time(lambda _: self._model(), call, doing=f"{self.name} had loaded its model")
        except RerankError:
            return False
        return True

    def close(self) -> None:
        """Free the model as soon as no call uses it; a later call loads it again."""
        with self._pool_lock:
            if self._pid != os.getpid():
                return  # freeing the session would wait for threads that did not come along with the fork
            self._loaded = None
            if self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None

    async def aclose(self) -> None:
        """As `close`; neither blocks."""
        self.close()

    async def _in_time(self, work: Callable[[threading.Event], T], call: Call, *, doing: str) -> T:
        """Result of work in a thread of ours; its event is set as soon as nobody waits for it any more."""
        call.deadline.left_s(doing=doing)
        stop = threading.Event()
        future = self._submit(partial(work, stop))
        try:
            return await in_time(future, call, doing=doing)
        finally:
            stop.set()
            future.cancel()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        with self._pool_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="triton-rerank-local")
                self._pid = os.getpid()
            if self._pid != os.getpid():
                raise ConfigurationError(
                    f"{self.name} was used in process {self._pid} before process {os.getpid()} was forked from it, and "
                    "ONNX Runtime's threads do not survive a fork; make and load a LocalScorer after the fork"
                )
            return self._pool.submit(work)

    def _model(self) -> Model:
        with self._load_lock:
            model = self._loaded
            if model is None:
                model = open_model(artefacts_of(self.model_repository, self.model), self._threads)
                self._loaded = model
            return model

    def _reread(self, _: threading.Event) -> ModelInfo:
        artefacts = artefacts_of(self.model_repository, self.model)
        with self._load_lock:
            if self._loaded is not None and self._loaded.artefacts != artefacts:
                self._loaded = None
        return artefacts.info

    def _answer(self, request: PairRequest, stop: threading.Event) -> Scored:
        model = self._model()
        info = model.artefacts.info
        logits, token_counts, truncated = score_pairs(model, request, stop)
        return Scored(
            model=self.model,
            served_by=self.name,
            logits=logits,
            scores=activate(logits, info.activation),
            truncated=truncated,
            token_count=int(token_counts.sum()),
            token_counts=token_counts,
            model_version=info.version,
        )
