"""Thin client for cross-encoder rerankers served by NVIDIA Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triton_rerank.aio import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.confidence import ConfidenceBands, Thresholds
from triton_rerank.errors import (
    AllScorersFailedError,
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotReadyError,
    NoRerankerError,
    OverloadedError,
    RequestTooLargeError,
    RerankError,
    ServerError,
    ServerUnavailableError,
    TransportError,
)
from triton_rerank.scorers.base import Scorer
from triton_rerank.scorers.cache import CacheCounters, CachedScorer
from triton_rerank.scorers.cascade import CascadeScorer
from triton_rerank.scorers.chain import FallbackScorer, FirstStageOrder, ScorerCounters
from triton_rerank.scorers.channel import Tls, TritonOptions
from triton_rerank.scorers.hosted import CohereScorer, JinaScorer, VoyageScorer
from triton_rerank.scorers.local import LocalScorer
from triton_rerank.scorers.observed import MeteredScorer, TracedScorer
from triton_rerank.scorers.servers import ServersCollector
from triton_rerank.scorers.triton import TritonScorer
from triton_rerank.types import Attempt, ModelInfo, RankedDocument, RerankResult, StageScore, Timings, Usage

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    if name == "__version__":  # read when it is asked for: that takes as long as importing half of the rest
        from importlib.metadata import version

        return version("triton-rerank")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AllScorersFailedError",
    "AsyncRerankClient",
    "Attempt",
    "CacheCounters",
    "CachedScorer",
    "CascadeScorer",
    "CohereScorer",
    "ConfidenceBands",
    "ConfigurationError",
    "DeadlineExceededError",
    "FallbackScorer",
    "FirstStageOrder",
    "InferenceError",
    "InvalidRequestError",
    "InvalidResponseError",
    "JinaScorer",
    "LocalScorer",
    "MeteredScorer",
    "ModelInfo",
    "ModelNotReadyError",
    "NoRerankerError",
    "OverloadedError",
    "RankedDocument",
    "RequestTooLargeError",
    "RerankClient",
    "RerankError",
    "RerankResult",
    "Scorer",
    "ScorerCounters",
    "ServerError",
    "ServerUnavailableError",
    "ServersCollector",
    "StageScore",
    "Thresholds",
    "Timings",
    "Tls",
    "TracedScorer",
    "TransportError",
    "TritonOptions",
    "TritonScorer",
    "Usage",
    "VoyageScorer",
]
