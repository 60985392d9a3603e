"""Who is timed: each takes a query with documents and gives one score a document, in the caller's order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from triton_rerank import RerankClient
from triton_rerank.repository import Artefacts
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import usable_cores
from triton_rerank_server.backends.encoder.engine import Engine, options_of
from triton_rerank_server.backends.encoder.openvino_session import OpenVinoOptions
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

SERVED = "served"
IN_PROCESS = "in process"
PEER = "sentence-transformers"
PEER_SMALL_BATCHES = "sentence-transformers, batch 8"
PEER_BATCH_SIZE = 32  # CrossEncoder.predict's default
SMALL_BATCH_SIZE = 8
CALL_TIMEOUT_S = 120.0


class Contestant(Protocol):
    """Something that scores documents."""

    name: str

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score a document, in the caller's order; higher is better."""
        ...


class Served:
    """Ours through client and a running Triton."""

    name = SERVED

    def __init__(self, client: RerankClient) -> None:
        self._client = client

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Scores after the model's activation."""
        return self._client.score(query, documents, timeout_s=CALL_TIMEOUT_S)


class InProcess:
    """Ours without Triton: the two backends' own code, with the settings that Triton gives them."""

    name = IN_PROCESS

    def __init__(self, model: Artefacts) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # as the tokenizer backend sets it
        self._tokenizer = tokenizer_of(model)
        self._engine = Engine(model.encoder_file, options_of(model.engine, model.parameters))

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Logits: the activation keeps the order and costs nothing that could be timed."""
        pairs = self._tokenizer.encode(query, documents)
        inputs = {name: getattr(pairs, name) for name in self._engine.input_names}
        return [float(logit) for logit in self._engine.logits([inputs])[0][:, 0]]

    def token_counts(self, query: str, documents: Sequence[str]) -> list[int]:
        """Tokens a pair, special tokens included."""
        return token_counts(self._tokenizer, query, documents)


Predict = Callable[[list[tuple[str, str]], int], list[float]]  # pairs, batch size -> scores


class Peer:
    """A sentence-transformers CrossEncoder, as `load_cross_encoder` gives it, at one batch size."""

    def __init__(self, predict: Predict, *, name: str, batch_size: int) -> None:
        self.name = name
        self._predict, self._batch_size = predict, batch_size

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Scores after the model's activation."""
        return self._predict([(query, document) for document in documents], self._batch_size)


def load_cross_encoder(checkpoint: Path, *, max_length: int, n_threads: int) -> Predict:
    """Load a checkpoint folder into sentence-transformers, torch fp32 on the CPU; longer pairs are cut.

    Raises:
        BenchError: the folder is not a checkpoint.
    """
    if not (checkpoint / "config.json").is_file():
        raise BenchError(
            f"--checkpoint {checkpoint}: looked for config.json there; give the PyTorch checkpoint folder that the "
            "served model was exported from"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local folder: nothing is asked of the hub
    import torch  # the slowest import of all, and only this contestant needs it
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(n_threads)
    model = CrossEncoder(str(checkpoint), max_length=max_length, device="cpu")

    def predict(pairs: list[tuple[str, str]], batch_size: int) -> list[float]:
        """Score pairs with no bar on the terminal."""
        return [float(score) for score in model.predict(pairs, batch_size=batch_size, show_progress_bar=False)]

    return predict


def tokenizer_of(model: Artefacts) -> PairTokenizer:
    """The server's tokenizer of a model."""
    return PairTokenizer.of_parameters(model.tokenizer_file, model.tokenizer_parameters)


def token_counts(tokenizer: PairTokenizer, query: str, documents: Sequence[str]) -> list[int]:
    """Tokens a pair, special tokens included."""
    return [int(count) for count in tokenizer.encode(query, documents).token_count[:, 0]]


def n_threads(model: Artefacts) -> int:
    """Threads that the encoder computes with."""
    options = options_of(model.engine, model.parameters)
    if isinstance(options, OpenVinoOptions):
        return options.inference_num_threads or usable_cores()
    return options.intra_op_thread_count or usable_cores()
