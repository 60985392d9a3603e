from __future__ import annotations

import grpc
import pytest

from triton_rerank import (
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
from triton_rerank.triton.status import TABLE, error_for

FAILING = "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:8001: "


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size", OverloadedError),
        ("UNAVAILABLE", "Request timeout expired", OverloadedError),
        ("UNAVAILABLE", "Request for unknown model: 'm' version 1 is not at ready state", ModelNotReadyError),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-k'", ConfigurationError),
        ("UNAVAILABLE", FAILING + "SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER", ConfigurationError),
        ("UNAVAILABLE", FAILING + "SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED", ConfigurationError),
        ("UNAVAILABLE", FAILING + "UNAUTHENTICATED: Hostname Verification Check failed.", ConfigurationError),
        ("UNAVAILABLE", FAILING + "Failed to create security handshaker.", ConfigurationError),
        ("UNAVAILABLE", "failed to connect to all addresses", ServerUnavailableError),
        ("UNAVAILABLE", FAILING + "Socket closed", ServerUnavailableError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceededError),
        ("CANCELLED", "Channel closed!", ConfigurationError),
        ("CANCELLED", "CANCELLED", ServerUnavailableError),
        ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", ModelNotReadyError),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ConfigurationError),
        ("INVALID_ARGUMENT", "unexpected inference input 'x'", InvalidRequestError),
        ("UNIMPLEMENTED", "Received http2 header with status: 404", ConfigurationError),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", RequestTooLargeError),
        ("RESOURCE_EXHAUSTED", "received metadata size exceeds hard limit (5 vs. 4)", RequestTooLargeError),
        ("RESOURCE_EXHAUSTED", "memory", OverloadedError),
        ("INVALID_ARGUMENT", "in ensemble 'm', ONNX Runtime cannot score these tensors (idx=9)", InferenceError),
        ("INTERNAL", "onnx runtime error", InferenceError),
        ("INTERNAL", "onnx runtime error 2: indices element out of data bounds, idx=9", InferenceError),
        ("INTERNAL", "in ensemble 'm', Stub process 'm-encoder_0_0' is not healthy.", ServerUnavailableError),
        ("UNKNOWN", "Failed to create channel to 'ipv4:x':the target uri is not valid", ConfigurationError),
        ("UNKNOWN", "Stream removed", InferenceError),
    ],
)
def test_status_and_message_give_the_error(status: str, message: str, expected: type[RerankError]) -> None:
    error = error_for(status, message, target="host:1", model="m", request_id="r")
    assert type(error) is expected
    assert message in str(error)
    assert "'m' at host:1" in str(error)
    assert error.request_id == "r"


def test_every_grpc_code_but_ok_has_a_row_that_matches_any_message() -> None:
    covered = {status for status, fragment, _, _ in TABLE if not fragment}
    assert covered == {code.name for code in grpc.StatusCode} - {"OK"}


def test_every_row_can_be_reached() -> None:
    """Fragments are in lower case, as messages are made; no row stands behind one that takes all of its messages."""
    for place, (status, fragment, *_) in enumerate(TABLE):
        assert fragment == fragment.lower()
        assert not [row for row in TABLE[:place] if row[0] == status and row[1] in fragment]


def test_a_status_that_nobody_knows_is_an_inference_error() -> None:
    assert type(error_for("NO_SUCH_CODE", "?", target="t", model="m")) is InferenceError
