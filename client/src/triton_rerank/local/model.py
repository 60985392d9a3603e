"""Tokenizer and engine of one model, in this process.

They are the very code that runs inside Triton, and come with the extra ``triton-rerank[local]``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from triton_rerank.contract import ENCODER_SUFFIX, LOGITS
from triton_rerank.core.scorer import PairRequest
from triton_rerank.errors import ConfigurationError, InferenceError, InvalidRequestError
from triton_rerank.repository import Artefacts, read_artefacts
from triton_rerank.triton.wire import finite

if TYPE_CHECKING:
    from triton_rerank_server.backends.encoder.engine import Engine
    from triton_rerank_server.backends.tokenizer.pairs import PairTensors, PairTokenizer

_IN_PROCESS = ("onnxruntime", "openvino")  # engines whose models can be scored without Triton
_BLOCK_BYTES = 64 * 1024  # of documents tokenised together: some 30 ms, and tensors of a few MiB


@dataclass(frozen=True, slots=True)
class Model:
    """Loaded, and what it was loaded from."""

    artefacts: Artefacts
    tokenizer: PairTokenizer
    engine: Engine


def score_pairs(
    model: Model, request: PairRequest, stop: threading.Event
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
    return finite(logits[:, 0]), token_counts, truncated


def _encoder(tokenizer: PairTokenizer, request: PairRequest) -> Callable[[npt.NDArray[np.intp]], PairTensors]:
    """What makes tensors of some of the documents; the query is tokenised once.

    Raises:
        PairError: a ``max_`` length is outside the model's bounds.
    """
    lengths = (request.max_length, request.max_query_tokens, request.max_document_tokens)
    limits = tokenizer.limits(*lengths, request.instruction)
    (query,) = tokenizer.tokenize([tokenizer.prompted(request.query.decode("utf-8"), limits)]).values()

    def encode(rows: npt.NDArray[np.intp]) -> PairTensors:
        """Tensors of the pairs of the query and these rows of the request."""
        documents = [tokenizer.prompted_document(request.documents[row].decode("utf-8")) for row in rows]
        tokens = tokenizer.tokenize(documents)
        return tokenizer.assemble([query] * len(rows), [tokens[document] for document in documents], limits)

    return encode


def artefacts_of(repository: Path, model: str) -> Artefacts:
    """Files and settings of the active version.

    Raises:
        ConfigurationError: something is missing or broken, or the encoder is made for another engine.
    """
    artefacts = read_artefacts(repository, model)
    if artefacts.engine not in _IN_PROCESS:
        raise ConfigurationError(
            f"{repository}: {model}{ENCODER_SUFFIX} is made for {artefacts.engine!r}, and only ONNX "
            "models can be scored in process; export the model with --engine onnxruntime --name ANOTHER_NAME"
        )
    return artefacts


def open_model(artefacts: Artefacts, threads: int) -> Model:
    """Load it.

    Raises:
        ConfigurationError: the extra ``local`` is not installed, or a file is broken or of another model.
    """
    try:
        from triton_rerank_server.backends.encoder.engine import Engine, options_of
        from triton_rerank_server.backends.encoder.session import EngineError
        from triton_rerank_server.backends.tokenizer.pairs import PairError, PairTokenizer
    except ImportError as exc:
        raise not_installed(str(exc)) from exc
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
    return Model(artefacts, tokenizer, engine)


def not_installed(reason: str) -> ConfigurationError:
    """What to raise where the server's distribution cannot be imported."""
    return ConfigurationError(
        f"LocalScorer needs the distribution triton-rerank-server ({reason}): pip install 'triton-rerank[local]'"
    )
