"""Every error that the client raises.

    RerankError                               retryable  falls_back  http_status  exit_code
    ├─ InvalidRequestError (ValueError)          no          no          400          2
    │   └─ RequestTooLargeError                  no          no          413          2
    ├─ ConfigurationError                        no          no          500          3
    │   └─ NoRerankerError                       no          no          400          3
    ├─ TransportError                            (base of the two below)
    │   ├─ ServerUnavailableError                yes         yes         503          4
    │   └─ DeadlineExceededError (TimeoutError)  no          yes         504          5
    ├─ ServerError                               (base of the three below)
    │   ├─ OverloadedError                       yes         yes         429          6
    │   ├─ ModelNotReadyError                    no          yes         503          7
    │   └─ InferenceError                        no          yes         502          8
    ├─ InvalidResponseError                      no          yes         502          9
    └─ AllScorersFailedError                     no          yes         503          10

The attributes stand on the class: a caller decides by them, never by a message's text. A message says what was
wrong, the value, the bound and what to do, on one line; it never carries more than 80 characters of a document.
"""

from __future__ import annotations

from typing import ClassVar

from triton_rerank.types import Attempt


def one_line(text: str) -> str:
    """The text on one line, and nothing in it that moves a terminal's cursor or turns its letters around."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


class RerankError(Exception):
    """Base of every error raised by triton_rerank; catch it to catch them all.

    Attributes:
        retryable: the same request may succeed if sent again.
        falls_back: another model or server may be asked instead.
        http_status: what an HTTP gateway should answer.
        exit_code: what a command should end with.
        request_id: id of the request as sent to the server, or None if none was sent.
        said: the words of who answered, without ours around them; None where the client itself found the fault.
    """

    retryable: ClassVar[bool] = False
    falls_back: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, request_id: str | None = None, said: str | None = None) -> None:
        super().__init__(one_line(message))  # a server's words may hold anything
        self.request_id = request_id
        self.said = None if said is None else one_line(said)


class InvalidRequestError(RerankError, ValueError):
    """The request can never succeed as it is: wrong type, empty query, ``top_k`` under 1."""

    http_status = 400
    exit_code = 2


class RequestTooLargeError(InvalidRequestError):
    """A query or document is larger than can be sent."""

    http_status = 413


class ConfigurationError(RerankError):
    """The client and the server do not fit: unknown model, certificates, headers."""

    exit_code = 3


class NoRerankerError(ConfigurationError):
    """The server has a model of that name, of another kind: a step of a reranker, or something else altogether."""

    http_status = 400


class TransportError(RerankError):
    """The server could not be reached, or did not answer in time."""

    falls_back = True
    http_status = 503


class ServerUnavailableError(TransportError):
    """No connection, or it broke: the server is not there, starting, or gone."""

    retryable = True
    exit_code = 4


class DeadlineExceededError(TransportError, TimeoutError):
    """``timeout_s`` passed before every answer was there."""

    http_status = 504
    exit_code = 5


class ServerError(RerankError):
    """The server answered with an error."""

    falls_back = True
    http_status = 502


class OverloadedError(ServerError):
    """The server's queue is full, or the request waited in it longer than allowed."""

    retryable = True
    http_status = 429
    exit_code = 6


class ModelNotReadyError(ServerError):
    """The model is known but not loaded."""

    http_status = 503
    exit_code = 7


class InferenceError(ServerError):
    """The model failed on this request."""

    exit_code = 8


class InvalidResponseError(RerankError):
    """The answer is not what the contract says: wrong shape or dtype, or a logit that is not finite."""

    falls_back = True
    http_status = 502
    exit_code = 9


class AllScorersFailedError(RerankError):
    """Every scorer of a chain failed, and the chain fails closed.

    Attributes:
        attempts: what each of them said, in the order in which they were asked.
    """

    falls_back = True  # a chain may stand in another chain
    http_status = 503
    exit_code = 10

    def __init__(self, message: str, *, attempts: tuple[Attempt, ...] = (), request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.attempts = attempts
