"""What goes wrong in front of a caller: one class, told apart by kind; a dialect words it and may change the status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from triton_rerank import (
    AllScorersFailedError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotReadyError,
    NoRerankerError,
    OverloadedError,
    RequestTooLargeError,
    RerankError,
    ServerUnavailableError,
)

Kind = Literal[
    "invalid",
    "empty",
    "unauthorized",
    "forbidden",
    "not_found",
    "unknown_model",
    "no_reranker",
    "method",
    "slow_body",
    "too_large",
    "media_type",
    "overloaded",
    "internal",
    "model_failed",
    "unavailable",
    "deadline",
]
STATUSES: Mapping[Kind, int] = {
    "invalid": 400,
    "empty": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_model": 404,
    "no_reranker": 400,
    "method": 405,
    "slow_body": 408,
    "too_large": 413,
    "media_type": 415,
    "overloaded": 429,
    "internal": 500,
    "model_failed": 502,
    "unavailable": 503,
    "deadline": 504,
}


class GatewayError(Exception):
    """A request that is not answered with a ranking.

    Attributes:
        kind: what happened; the dialect makes status and body of it.
        message: one line for the caller: what was wrong, the value, the bound, what to do.
        retry_after_s: whole seconds after which the same request may succeed; None if that is not known.
        cause: class of the error behind it, for logs and metrics.
    """

    def __init__(self, kind: Kind, message: str, *, retry_after_s: int | None = None, cause: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s
        self.cause = cause or kind


def from_client(error: RerankError) -> GatewayError:
    """What a caller may know of an error behind the gateway: addresses and settings stay in the log."""
    kind, message = _told(error)
    return GatewayError(kind, message, cause=type(error).__name__)


def _told(error: RerankError) -> tuple[Kind, str]:
    for classes, kind, message in _TOLD:
        if isinstance(error, classes):
            return kind, message or error.said or str(error)
    return "model_failed", "the model failed on this request; the gateway's log says why, under this request's id"


_TOLD: tuple[tuple[type[RerankError], Kind, str], ...] = (
    (RequestTooLargeError, "too_large", ""),
    (InvalidRequestError, "invalid", ""),
    (OverloadedError, "overloaded", "the reranker's queue is full; send the request again later"),
    (DeadlineExceededError, "deadline", "the time for this request passed before every document was scored"),
    (ModelNotReadyError, "unavailable", "the model is not loaded; send the request again later"),
    (ServerUnavailableError, "unavailable", "no reranker can be reached; send the request again later"),
    (AllScorersFailedError, "unavailable", "no reranker of this chain answered; send the request again later"),
    (NoRerankerError, "no_reranker", "the model of this name is no reranker; ask for another one, see /v1/models"),
    (ConfigurationError, "internal", "the gateway is not configured for the reranker behind it; its log says why"),
)
