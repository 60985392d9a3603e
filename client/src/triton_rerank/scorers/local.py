"""Scores pairs in this process, from the files that Triton serves: what is left when every server is gone.

Tokenizer and engine are the very code that runs inside Triton; they come with the extra ``triton-rerank[local]``. All
work is done in threads of the scorer's own: a caller whose deadline passes leaves at once, whatever its thread is
doing, and the thread stops after the micro-batch that it computes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from triton_rerank._numbers import whole
from triton_rerank._ranking import activate
from triton_rerank._remade import Remade
from triton_rerank._wire import decode_logits
from triton_rerank.contract import ENCODER_SUFFIX, LOGITS
from triton_rerank.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    RerankError,
)
from triton_rerank.repository import Artefacts, read_artefacts
from triton_rerank.scorers.base import Call, PairRequest, Scored
from triton_rerank.types import ModelInfo

if TYPE_CHECKING:
    from triton_rerank_server.backends.encoder.engine import Engine
    from triton_rerank_server.backends.tokenizer.pairs import PairTensors, PairTokenizer

T = TypeVar("T")

_IN_PROCESS = ("onnxruntime", "openvino")  # engines whose models can be scored without Triton
_WORKERS = 4  # calls that compute at a time; more would only slow each other down
_BLOCK_BYTES = 64 * 1024  # of documents tokenised together: some 30 ms, and tensors of a few MiB


@dataclass(frozen=True, slots=True)
class _Model:
    artefacts: Artefacts
    tokenizer: PairTokenizer
    engine: Engine


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
            raise _not_installed("no module triton_rerank_server")
        self.model_repository = Path(model_repository)
        self.model = model
        self._name = name or "local"
        self._threads = threads
        self._loaded: _Model | None = None
        self._load_lock = threading.Lock()  # held while a model loads
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._pid = os.getpid()  # of the process that the pool and the model belong to

    @property
    def name(self) -> str:
        """What results and logs call it."""
        return self._name

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
        left_s = call.deadline.left_s(doing=doing)
        stop = threading.Event()
        future = self._submit(partial(work, stop))
        try:
            if call.runtime.is_async:  # without in_thread: its threads would be used up by calls that wait
                return await asyncio.wait_for(asyncio.wrap_future(future), left_s)
            return future.result(left_s)
        except (asyncio.TimeoutError, concurrent.futures.TimeoutError) as exc:
            raise DeadlineExceededError(
                f"timeout_s of {call.deadline.timeout_s:g} s passed before {doing}; raise it, or ask less"
            ) from exc
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

    def _model(self) -> _Model:
        with self._load_lock:
            model = self._loaded
            if model is None:
                model = _open(_artefacts(self.model_repository, self.model), self._threads)
                self._loaded = model
            return model

    def _reread(self, _: threading.Event) -> ModelInfo:
        artefacts = _artefacts(self.model_repository, self.model)
        with self._load_lock:
            if self._loaded is not None and self._loaded.artefacts != artefacts:
                self._loaded = None
        return artefacts.info

    def _answer(self, request: PairRequest, stop: threading.Event) -> Scored:
        model = self._model()
        info = model.artefacts.info
        logits, token_counts, truncated = _score(model, request, stop)
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


def _score(
    model: _Model, request: PairRequest, stop: threading.Event
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Logits, tokens and truncated of each pair, ``(n,)``."""
    from triton_rerank_server.backends.encoder.engine import micro_batches
    from triton_rerank_server.backends.tokenizer.pairs import PairError

    n = len(request.documents)
    logits, truncated, token_counts = np.empty((n, 1), np.float32), np.empty(n, np.bool_), np.empty(n, np.intp)
    sizes = np.fromiter(map(len, request.documents), np.intp, n)  # (n,) bytes
    try:
        encode = _encoder(model.tokenizer, request)
        for block in micro_batches(sizes, _BLOCK_BYTES):
            tensors = encode(block)
            truncated[block] = tensors.truncated[:, 0]
            lengths = token_counts[block] = tensors.token_count[:, 0].astype(np.intp)
            for batch in micro_batches(lengths, model.engine.micro_batch_tokens, model.engine.batch_cost_tokens):
                if stop.is_set():
                    raise CancelledError  # nobody hears it
                inputs = {name: getattr(tensors, name)[batch] for name in model.engine.input_names}
                logits[block[batch]] = model.engine.logits([inputs])[0]
    except PairError as exc:
        raise InvalidRequestError(str(exc)) from exc
    except CancelledError:
        raise
    except BaseException as exc:  # out of memory, a panic of Rust: nothing that the caller could change
        raise InferenceError(f"{model.artefacts.encoder_file}: {str(exc) or repr(exc)}") from exc
    return decode_logits(logits, n_documents=n), token_counts, truncated


def _encoder(tokenizer: PairTokenizer, request: PairRequest) -> Callable[[npt.NDArray[np.intp]], PairTensors]:
    """What makes tensors of some of the documents; the query is tokenised once.

    Raises:
        PairError: a ``max_`` length is outside the model's bounds.
    """
    lengths = (request.max_length, request.max_query_tokens, request.max_document_tokens)
    limits = tokenizer.limits(*lengths, request.instruction)
    (query,) = tokenizer.tokenize([tokenizer.prompted(request.query.decode("utf-8"), limits)]).values()

    def encode(rows: npt.NDArray[np.intp]) -> PairTensors:
        documents = [tokenizer.prompted_document(request.documents[row].decode("utf-8")) for row in rows]
        tokens = tokenizer.tokenize(documents)
        return tokenizer.assemble([query] * len(rows), [tokens[document] for document in documents], limits)

    return encode


def _artefacts(repository: Path, model: str) -> Artefacts:
    artefacts = read_artefacts(repository, model)
    if artefacts.engine not in _IN_PROCESS:
        raise ConfigurationError(
            f"{repository}: {model}{ENCODER_SUFFIX} is made for {artefacts.engine!r}, and only ONNX "
            "models can be scored in process; export the model with --engine onnxruntime --name ANOTHER_NAME"
        )
    return artefacts


def _open(artefacts: Artefacts, threads: int) -> _Model:
    try:
        from triton_rerank_server.backends.encoder.engine import Engine, options_of
        from triton_rerank_server.backends.encoder.session import EngineError
        from triton_rerank_server.backends.tokenizer.pairs import PairError, PairTokenizer
    except ImportError as exc:
        raise _not_installed(str(exc)) from exc
    try:
        tokenizer = PairTokenizer.of_parameters(artefacts.tokenizer_file, artefacts.tokenizer_parameters)
        engine = Engine(artefacts.encoder_file, options_of(artefacts.engine, artefacts.parameters, threads=threads))
    except (PairError, EngineError) as exc:
        raise ConfigurationError(str(exc)) from exc
    if sorted(engine.input_names) != sorted(artefacts.inputs) or LOGITS not in engine.output_names:
        raise ConfigurationError(
            f"{artefacts.encoder_file}: the graph has inputs {sorted(engine.input_names)} and outputs "
            f"{sorted(engine.output_names)}, config.pbtxt has {sorted(artefacts.inputs)} and {LOGITS}; "
            "the config belongs to another model, export it again"
        )
    return _Model(artefacts, tokenizer, engine)


def _not_installed(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"LocalScorer needs the distribution triton-rerank-server ({reason}): pip install 'triton-rerank[local]'"
    )
