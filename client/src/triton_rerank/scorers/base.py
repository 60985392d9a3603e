"""The seam between policy and I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from triton_rerank._deadline import Deadline
from triton_rerank._wire import PairScores
from triton_rerank.types import ModelInfo


class Scorer(Protocol):
    """Scores the pairs of one query. Everything above is pure policy, everything below is I/O."""

    def model_info(self, deadline: Deadline) -> ModelInfo:
        """Activation and limits of the model, as the server states them."""

    def score_pairs(self, query: bytes, documents: Sequence[bytes], deadline: Deadline) -> PairScores:
        """Scores of n pairs, n at most the model's ``max_batch_size``, in the order given."""

    def is_server_ready(self, timeout_s: float) -> bool:
        """True if the server answers and says that it is ready."""

    def is_model_ready(self, timeout_s: float) -> bool:
        """True if the server answers and says that the model is ready."""

    def close(self) -> None:
        """Release the connection."""
