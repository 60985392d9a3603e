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
from triton_rerank._status import TABLE, error_for


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size", OverloadedError),
        ("UNAVAILABLE", "Request timeout expired", OverloadedError),
        ("UNAVAILABLE", "Request for unknown model: 'm' version 1 is not at ready state", ModelNotReadyError),
        ("UNAVAILABLE", "failed to connect to all addresses", ServerUnavailableError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceededError),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ConfigurationError),
        ("INVALID_ARGUMENT", "unexpected inference input 'x'", InvalidRequestError),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", RequestTooLargeError),
        ("RESOURCE_EXHAUSTED", "memory", OverloadedError),
        ("INTERNAL", "onnx runtime error", InferenceError),
    ],
)
def test_status_and_message_give_the_error(status: str, message: str, expected: type[RerankError]) -> None:
    error = error_for(f"StatusCode.{status}", message, target="host:1", model="m", request_id="r")
    assert type(error) is expected
    assert message in str(error)
    assert "'m' at host:1" in str(error)
    assert error.request_id == "r"


def test_every_grpc_code_but_ok_has_a_row_that_matches_any_message() -> None:
    covered = {status for status, fragment, _, _ in TABLE if not fragment}
    assert covered == {code.name for code in grpc.StatusCode} - {"OK"}


def test_rows_that_match_any_message_come_after_the_others() -> None:
    for code in {status for status, *_ in TABLE}:
        fragments = [fragment for status, fragment, _, _ in TABLE if status == code]
        assert fragments.index("") == len(fragments) - 1


def test_a_status_that_nobody_knows_is_an_inference_error() -> None:
    assert type(error_for("NO_SUCH_CODE", "?", target="t", model="m")) is InferenceError
