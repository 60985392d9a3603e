"""Bad input against a real server: each gets a message that a stranger can act on, and harms nobody else."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from support.load import BusyClock
from support.raw import infer_raw

from triton_rerank import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    RerankClient,
    ServerUnavailableError,
)
from triton_rerank_server import TritonServer

DEMO = "minilm-l6-demo"
OUTPUTS = ["logits", "token_count", "truncated"]


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    return str(error.value)


def test_an_empty_document_keeps_its_place(demo_client: RerankClient) -> None:
    result = demo_client.rerank("how do I make a file smaller?", ["", "gzip shrinks files", ""])
    assert sorted(ranked.index for ranked in result) == [0, 1, 2]
    assert result[0].index == 1
    assert [ranked.document for ranked in result if ranked.index != 1] == ["", ""]


def test_a_lone_surrogate_is_refused_by_place(demo_client: RerankClient) -> None:
    with pytest.raises(InvalidRequestError) as error:
        demo_client.rerank("a query", ["fine", "broken \ud800 text"])
    assert "documents[1] has a lone surrogate (U+D800) at character 7" in message(error)


def test_an_unknown_model_is_named(server: TritonServer) -> None:
    with RerankClient(server.grpc_target, model="no-such-model") as client:
        assert not client.is_ready()
        with pytest.raises(ConfigurationError) as error:
            client.rerank("q", ["a"])
    assert "'no-such-model'" in message(error)
    assert "check the model's name" in message(error)


def test_a_step_of_the_ensemble_is_not_a_reranker(server: TritonServer) -> None:
    with (
        RerankClient(server.grpc_target, model=f"{DEMO}-encoder") as client,
        pytest.raises(ConfigurationError) as error,
    ):
        client.rerank("q", ["a"])
    assert "ask for the ensemble, not for its steps" in message(error)


def test_a_server_that_is_not_there_is_said_so() -> None:
    with RerankClient("127.0.0.1:1", model=DEMO) as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnavailableError) as error:
            client.rerank("q", ["a"])
    assert "127.0.0.1:1" in message(error)
    assert "check that it runs, that this is its gRPC port" in message(error)
    assert error.value.retryable


@pytest.mark.parametrize("timeout_s", [0.001, 0.3])
def test_a_deadline_holds_for_the_whole_call_however_it_is_split(
    demo_client: RerankClient, timeout_s: float, busy: BusyClock
) -> None:
    demo_client.rerank("q", ["warm"])
    documents = [f"a binary heap keeps its largest element at root {number} " * 10 for number in range(3000)]
    begin = time.monotonic()
    with pytest.raises(DeadlineExceededError) as error:
        demo_client.rerank("heap", documents, timeout_s=timeout_s)
    assert busy.own_s(begin) < timeout_s + 0.25  # a deadline anew for a later part would be 0.3 s more
    assert isinstance(error.value, TimeoutError)
    assert "timeout_s" in message(error)


@pytest.mark.parametrize(
    ("inputs", "fragment"),
    [
        ({"question": ["q"], "document": ["d"]}, "question"),
        ({"query": ["q"]}, "expected 2 inputs"),
        ({"query": ["q"], "document": np.zeros((1, 1), np.int64)}, "document"),
        ({"query": ["q"], "document": ["a", "b"]}, "batch"),
        ({"query": np.array([[b"q", b"r"]], object), "document": ["d"]}, "unexpected shape"),
        ({"query": ["q"] * 257, "document": ["d"] * 257}, "batch-size must be <= 256"),
    ],
    ids=["wrong name", "one input missing", "wrong dtype", "rows differ", "two columns", "too many rows"],
)
def test_raw_tensors_that_do_not_fit_are_refused(server: TritonServer, inputs: dict[str, Any], fragment: str) -> None:
    with pytest.raises(triton.InferenceServerException) as error:
        infer_raw(server.grpc_target, DEMO, inputs, OUTPUTS)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert fragment in message(error)


@pytest.mark.parametrize(
    ("parameters", "fragment"),
    [
        ({"max_length": 513}, "max_length is 513: it must be a whole number from 5 to 512"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": "64"}, "max_length is '64'"),
        ({"max_length": 64, "max_query_tokens": 61}, "max_query_tokens is 61: it must be a whole number from 1 to 60"),
        ({"max_query_tokens": True}, "max_query_tokens is True"),
        ({"max_document_tokens": 0}, "max_document_tokens is 0: it must be a whole number from 1 to 508"),
    ],
)
def test_request_parameters_out_of_bounds_are_refused(
    server: TritonServer, parameters: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(triton.InferenceServerException) as error:
        infer_raw(server.grpc_target, DEMO, {"query": ["q"], "document": ["d"]}, OUTPUTS, parameters)
    assert fragment in message(error)


def test_bytes_that_are_not_utf8_are_refused(server: TritonServer) -> None:
    with pytest.raises(triton.InferenceServerException) as error:
        infer_raw(server.grpc_target, DEMO, {"query": ["q"], "document": [b"ab\xff"]}, OUTPUTS)
    assert "document is not UTF-8: invalid start byte at byte 2; send UTF-8 text" in message(error)


def test_token_ids_outside_the_vocabulary_are_refused(server: TritonServer) -> None:
    ids = np.full((1, 32), 10**6, dtype=np.int64)
    with pytest.raises(triton.InferenceServerException) as error:
        infer_raw(
            server.grpc_target,
            "tiny-bert-encoder",  # the demo model may still compute what the deadlines above left to it
            {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)},
            ["logits"],
        )
    assert "ONNX Runtime cannot score these tensors" in message(error)


def test_a_bad_request_leaves_its_neighbours_their_answers(server: TritonServer) -> None:
    good = infer_raw(server.grpc_target, "tiny-bert", {"query": ["q"], "document": ["d"]}, OUTPUTS)["logits"]

    def send(number: int) -> str:
        bad = number % 3 == 0
        try:
            answer = infer_raw(
                server.grpc_target, "tiny-bert", {"query": ["q"], "document": [b"\xff" if bad else "d"]}, OUTPUTS
            )
        except triton.InferenceServerException as exc:
            return "refused" if "not UTF-8" in str(exc) else str(exc)
        return "right" if np.allclose(answer["logits"], good, atol=1e-4) else "wrong"

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(send, range(96)))
    assert outcomes == ["refused" if number % 3 == 0 else "right" for number in range(96)]
