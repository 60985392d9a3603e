"""gRPC status and Triton's message -> error class, in one table. Pure.

Triton answers UNAVAILABLE for several things that only the message tells apart. First match wins; an empty fragment
matches every message.
"""

from __future__ import annotations

import re

from triton_rerank.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    ModelNotReadyError,
    OverloadedError,
    RequestTooLargeError,
    RerankError,
    ServerUnavailableError,
)

# (status, fragment of the message in lower case, error, what to do)
TABLE: tuple[tuple[str, str, type[RerankError], str], ...] = (
    ("UNAVAILABLE", "exceeds maximum queue size", OverloadedError, "send it again later, or add servers"),
    ("UNAVAILABLE", "request timeout expired", OverloadedError, "send it again later, or add servers"),
    ("UNAVAILABLE", "not at ready state", ModelNotReadyError, "see the server's log for why it did not load"),
    ("UNAVAILABLE", "is not ready", ModelNotReadyError, "see the server's log for why it did not load"),
    ("UNAVAILABLE", "protocol is restricted", ConfigurationError, "give the header in TritonOptions(headers=…)"),
    ("UNAVAILABLE", "wrong_version_number", ConfigurationError, "the server does not speak TLS there: leave tls out"),
    ("UNAVAILABLE", "hostname verification", ConfigurationError, "give the certificate's name in Tls(server_name=…)"),
    ("UNAVAILABLE", "security handshaker", ConfigurationError, "check that the files in Tls(…) are PEM, and a pair"),
    ("UNAVAILABLE", "certificate_verify_failed", ConfigurationError, "check the certificates in TritonOptions(tls=…)"),
    ("UNAVAILABLE", "", ServerUnavailableError, "check that it runs, that this is its gRPC port, and if it wants TLS"),
    ("DEADLINE_EXCEEDED", "", DeadlineExceededError, "raise timeout_s, or send fewer documents"),
    ("CANCELLED", "channel closed", ConfigurationError, "the client was closed under the call: close it afterwards"),
    ("CANCELLED", "", ServerUnavailableError, "the server ended the call, it may be shutting down; send it again"),
    ("NOT_FOUND", "no available versions", ModelNotReadyError, "it was unloaded: load it again"),
    ("NOT_FOUND", "", ConfigurationError, "check the model's name against the server's repository"),
    # Our encoder, of ids outside a table; a caller of the ensemble sends none, so the model's files are at odds. (The
    # native backends answer INTERNAL for that, and for everything else that fails in a run.)
    ("INVALID_ARGUMENT", "cannot score these tensors", InferenceError, "export the model again"),
    ("INVALID_ARGUMENT", "", InvalidRequestError, "change the request"),
    ("OUT_OF_RANGE", "", InvalidRequestError, "change the request"),
    ("FAILED_PRECONDITION", "", ConfigurationError, "check that client and server fit together"),
    ("ALREADY_EXISTS", "", ConfigurationError, "check that client and server fit together"),
    ("UNIMPLEMENTED", "", ConfigurationError, "check that this is Triton's gRPC port, and no proxy before it"),
    ("UNAUTHENTICATED", "", ConfigurationError, "check the credentials"),
    ("PERMISSION_DENIED", "", ConfigurationError, "check the credentials"),
    ("RESOURCE_EXHAUSTED", "message larger than max", RequestTooLargeError, "send fewer or shorter documents"),
    ("RESOURCE_EXHAUSTED", "metadata size", RequestTooLargeError, "shorten the headers"),
    ("RESOURCE_EXHAUSTED", "", OverloadedError, "send it again later, or add servers"),
    ("ABORTED", "", ServerUnavailableError, "send it again"),
    # A backend process that was killed, or stands still; nothing was wrong with the request.
    ("INTERNAL", "is not healthy", ServerUnavailableError, "its backend process died: start the server again"),
    ("INTERNAL", "", InferenceError, "see the server's log"),
    ("DATA_LOSS", "", InferenceError, "see the server's log"),
    ("UNKNOWN", "failed to create channel", ConfigurationError, "check the target"),
    ("UNKNOWN", "", InferenceError, "see the server's log"),
)

_MOST_PAIRS = re.compile(r"batch-size must be <= (\d+) for")
_STEP = re.compile(r"^in ensemble '[^']*', ")  # before the words of a step, which are ours


def error_for(status: str, message: str, *, target: str, model: str, request_id: str | None = None) -> RerankError:
    """Make the error for an RPC that failed.

    Args:
        status: gRPC status name.
        message: the server's or the channel's words.
        target: ``host:port`` that was called.
        model: model that was asked for.
        request_id: id of the request.
    """
    lowered = message.lower()
    error, advice = next(
        ((error, advice) for code, fragment, error, advice in TABLE if code == status and fragment in lowered),
        (InferenceError, "see the server's log"),
    )
    said = _STEP.sub("", message)
    return error(f"{model!r} at {target}: {message} [{status}]; {advice}", request_id=request_id, said=said)


def most_pairs(error: RerankError) -> int | None:
    """The bound that a server names where a request has more pairs than it takes; None for any other error."""
    found = _MOST_PAIRS.search(str(error))
    return int(found[1]) if found else None
