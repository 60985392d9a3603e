"""Thin client for cross-encoder rerankers served by NVIDIA Triton."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import TYPE_CHECKING

from triton_rerank.aio import AsyncRerankClient
from triton_rerank.cache.scorer import CacheCounters, CachedScorer
from triton_rerank.cascade import CascadeScorer
from triton_rerank.client import RerankClient
from triton_rerank.confidence import ConfidenceBands, Thresholds
from triton_rerank.core.scorer import Scorer
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
from triton_rerank.fallback.chain import FallbackScorer, FirstStageOrder, ScorerCounters
from triton_rerank.hosted import CohereScorer, JinaScorer, VoyageScorer
from triton_rerank.local.scorer import LocalScorer
from triton_rerank.observability.observed import MeteredScorer, TracedScorer
from triton_rerank.observability.servers import ServersCollector
from triton_rerank.triton.channel import Tls, TritonOptions
from triton_rerank.triton.scorer import TritonScorer
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

for _name in __all__:  # a traceback names an error as a user imports it
    if not is_dataclass(globals()[_name]):  # whose annotations are looked up where it was written: pydantic does
        globals()[_name].__module__ = __name__
