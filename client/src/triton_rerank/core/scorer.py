"""The seam between policy and I/O: whatever orders documents is a `Scorer`.

A scorer is asked for a whole request, never for part of one, since logits of two models do not compare. Its methods
are coroutines that wait through ``call.runtime`` only, so one implementation serves `RerankClient` and
`AsyncRerankClient`.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from triton_rerank.core.deadline import Deadline
from triton_rerank.core.remade import Remade
from triton_rerank.core.runtime import Runtime, outcome
from triton_rerank.errors import ConfigurationError
from triton_rerank.types import Attempt, ModelInfo

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PairRequest:
    """One query with n distinct documents, checked.

    Attributes:
        query: UTF-8, not blank.
        documents: n texts in UTF-8, n at least 1.
        max_length: longest pair in tokens; None means the model's own.
        max_query_tokens: most tokens that are kept of the query; None means the model's own rule.
        max_document_tokens: most tokens that are kept of each document; None means as many as have room.
        instruction: what a model with a prompt is told to look for; None means the prompt's own.
    """

    query: bytes
    documents: tuple[bytes, ...]
    max_length: int | None = None
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no truth value
class Stage:
    """What one stage of a cascade said of n documents.

    Attributes:
        model: the stage's model.
        scores: float64 ``(n,)``, after its activation; NaN where it did not score.
        logits: float32 ``(n,)``, NaN where it did not score; None if the model gives none.
    """

    model: str
    scores: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a scorer says of n documents, in request order.

    Attributes:
        model: the model that answered.
        served_by: name of the scorer that answered.
        logits: float32 ``(n,)``, all finite; None from models that tell scores only, and from no model at all.
        scores: float64 ``(n,)``, after the model's activation, all finite; None from no model at all, which keeps the
            order of the request.
        truncated: bool ``(n,)``.
        token_count: tokens read, all documents together.
        model_version: as the server states it.
        requests: sub-requests sent.
        cached_pairs: pairs that came from a cache.
        tiers: int ``(n,)``; every document of a lower tier ranks before those of a higher one, and only tier 0 has a
            score on the result. None means one tier.
        stages: of a cascade, first stage first.
        degraded: another than the first choice answered.
        reason: why.
        attempts: who failed before.
        token_counts: int ``(n,)``, tokens of each pair as the model read it; None where it is not known.
    """

    model: str
    served_by: str
    logits: npt.NDArray[np.float32] | None
    scores: npt.NDArray[np.float64] | None
    truncated: npt.NDArray[np.bool_]
    token_count: int
    model_version: str = ""
    requests: int = 1
    cached_pairs: int = 0
    tiers: npt.NDArray[np.intp] | None = None
    stages: tuple[Stage, ...] = ()
    degraded: bool = False
    reason: str | None = None
    attempts: tuple[Attempt, ...] = ()
    token_counts: npt.NDArray[np.integer[Any]] | None = None


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


class Around(Remade):
    """What a scorer around one other passes on as it is; a copy is made of a copy of that one."""

    def __init__(self, scorer: Scorer, name: str | None = None) -> None:
        self.name = scorer.name if name is None else name
        self._scorer = scorer

    @property
    def model(self) -> str:
        """The scorer's model, "" if it has several."""
        return str(getattr(self._scorer, "model", ""))

    async def is_ready(self, call: Call) -> bool:
        """True if the scorer is."""
        return await self._scorer.is_ready(call)

    async def model_info(self, call: Call) -> ModelInfo:
        """What the scorer's model says.

        Raises:
            ConfigurationError: the scorer has several models.
        """
        return await info_of(self._scorer, call)

    def close(self) -> None:
        """Close the scorer."""
        self._scorer.close()

    async def aclose(self) -> None:
        """Close the scorer."""
        await self._scorer.aclose()


async def info_of(scorer: Scorer, call: Call) -> ModelInfo:
    """What a scorer's model says.

    Raises:
        ConfigurationError: the scorer has several models.
    """
    if not isinstance(scorer, ModelScorer):
        raise ConfigurationError(f"{scorer.name} is no single model: ask one of its scorers for model_info")
    return await scorer.model_info(call)


async def in_time(future: Future[T], call: Call, *, doing: str) -> T:
    """Result of a thread's work, within the call's deadline.

    Args:
        future: of the work, which may go on afterwards.
        call: whose deadline holds.
        doing: what is done when it comes; named in the error.

    Raises:
        DeadlineExceededError: the deadline passed first.
    """
    try:
        return await outcome(future, call.runtime, call.deadline.left_s(doing=doing))
    except TimeoutError as exc:
        raise call.deadline.passed(doing) from exc
