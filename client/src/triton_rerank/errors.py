"""Every error that the client raises.

    RerankError                               retryable  falls_back  http_status
    ├─ InvalidRequestError (ValueError)          no          no          400
    │   └─ RequestTooLargeError                  no          no          413
    ├─ ConfigurationError                        no          no          500
    ├─ TransportError                            (base of the two below)
    │   ├─ ServerUnavailableError                yes         yes         503
    │   └─ DeadlineExceededError (TimeoutError)  no          yes         504
    ├─ ServerError                               (base of the three below)
    │   ├─ OverloadedError                       yes         yes         429
    │   ├─ ModelNotReadyError                    no          yes         503
    │   └─ InferenceError                        no          yes         502
    └─ InvalidResponseError                      no          yes         502

The attributes stand on the class: a caller decides by them, never by a message's text. A message says what was
wrong, the value, the bound and what to do; it never carries more than 80 characters of a document.
"""

from __future__ import annotations

from typing import ClassVar


class RerankError(Exception):
    """Base of every error raised by triton_rerank; catch it to catch them all.

    Attributes:
        retryable: the same request may succeed if sent again.
        falls_back: another model or server may be asked instead.
        http_status: what an HTTP gateway should answer.
        request_id: id of the request as sent to the server, or None if none was sent.
    """

    retryable: ClassVar[bool] = False
    falls_back: ClassVar[bool] = False
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class InvalidRequestError(RerankError, ValueError):
    """The request can never succeed as it is: wrong type, empty query, ``top_k`` under 1."""

    http_status = 400


class RequestTooLargeError(InvalidRequestError):
    """A query or document is larger than can be sent."""

    http_status = 413


class ConfigurationError(RerankError):
    """The client and the server do not fit: unknown model, or a model that is not a reranker."""


class TransportError(RerankError):
    """The server could not be reached, or did not answer in time."""

    falls_back = True
    http_status = 503


class ServerUnavailableError(TransportError):
    """No connection, or it broke: the server is not there, starting, or gone."""

    retryable = True


class DeadlineExceededError(TransportError, TimeoutError):
    """``timeout_s`` passed before every answer was there."""

    http_status = 504


class ServerError(RerankError):
    """The server answered with an error."""

    falls_back = True
    http_status = 502


class OverloadedError(ServerError):
    """The server's queue is full, or the request waited in it longer than allowed."""

    retryable = True
    http_status = 429


class ModelNotReadyError(ServerError):
    """The model is known but not loaded."""

    http_status = 503


class InferenceError(ServerError):
    """The model failed on this request."""


class InvalidResponseError(RerankError):
    """The answer is not what the contract says: wrong shape or dtype, or a logit that is not finite."""

    falls_back = True
    http_status = 502
