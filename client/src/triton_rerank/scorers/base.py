"""The seam between policy and I/O: whatever orders documents is a `Scorer`.

A scorer is asked for a whole request, never for part of one, since logits of two models do not compare. Its methods
are coroutines that wait through ``call.runtime`` only, so one implementation serves `RerankClient` and
`AsyncRerankClient`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from triton_rerank._deadline import Deadline
from triton_rerank._runtime import Runtime
from triton_rerank._scored import PairRequest, Scored, Stage
from triton_rerank.types import ModelInfo

__all__ = ["Call", "ModelScorer", "PairRequest", "Scored", "Scorer", "Stage"]


@dataclass(frozen=True, slots=True)
class Call:
    """What holds for one call, whoever answers it.

    Attributes:
        deadline: of the whole call.
        runtime: how to wait.
        headers: gRPC metadata of this call; hosted scorers do not send it, as it may hold Triton's secrets.
    """

    deadline: Deadline
    runtime: Runtime
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Scorer(Protocol):
    """Scores the pairs of one query; shared between threads."""

    @property
    def name(self) -> str:
        """What results, logs and counters call it."""

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Score every document of the request.

        Raises:
            RerankError: its class says whether to ask again, and whether to ask somebody else.
        """

    async def is_ready(self, call: Call) -> bool:
        """True if it would answer now; never raises for a server that is not there."""

    def close(self) -> None:
        """Release what the sync client used."""

    async def aclose(self) -> None:
        """Release everything, inside the event loop that the async client used."""


@runtime_checkable
class ModelScorer(Scorer, Protocol):
    """A scorer of one model that gives logits and can say which version answers."""

    async def model_info(self, call: Call) -> ModelInfo:
        """Activation, limits and version of the model, asked anew."""
