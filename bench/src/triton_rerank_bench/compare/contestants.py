"""Who is timed: each takes a query with documents and gives one score a document, in the caller's order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from triton_rerank import RerankClient
from triton_rerank.repository import Artefacts
from triton_rerank_bench.machine import usable_cores
from triton_rerank_server.backends.encoder.engine import Engine, options_of
from triton_rerank_server.backends.encoder.openvino_session import OpenVinoOptions
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

SERVED = "served"
IN_PROCESS = "in process"
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
