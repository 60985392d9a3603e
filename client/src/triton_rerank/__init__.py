"""Thin client for cross-encoder rerankers served by NVIDIA Triton."""

from triton_rerank.client import RerankClient
from triton_rerank.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotReadyError,
    OverloadedError,
    RequestTooLargeError,
    RerankError,
    ServerError,
    ServerUnavailableError,
    TransportError,
)
from triton_rerank.types import ModelInfo, RankedDocument, RerankResult, Timings, Usage

__all__ = [
    "ConfigurationError",
    "DeadlineExceededError",
    "InferenceError",
    "InvalidRequestError",
    "InvalidResponseError",
    "ModelInfo",
    "ModelNotReadyError",
    "OverloadedError",
    "RankedDocument",
    "RequestTooLargeError",
    "RerankClient",
    "RerankError",
    "RerankResult",
    "ServerError",
    "ServerUnavailableError",
    "Timings",
    "TransportError",
    "Usage",
]
