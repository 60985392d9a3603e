from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from triton_rerank import InvalidResponseError
from triton_rerank.triton.wire import OUTPUTS, Tensor, decode_scores, encode_pairs, finite, merge


def tensor(datatype: str, values: Sequence[float], dtype: npt.DTypeLike) -> Tensor:
    return datatype, [len(values), 1], np.array(values, dtype).tobytes()


def outputs(*logits: float) -> dict[str, Tensor]:
    n = len(logits)
    return {
        "logits": tensor("FP32", logits, np.float32),
        "token_count": tensor("INT32", [7] * n, np.int32),
        "truncated": tensor("BOOL", [False] * (n - 1) + [True], np.bool_),
    }


def test_an_answer_is_decoded() -> None:
    scores = decode_scores(outputs(1.5, -2.0), n_documents=2)
    assert scores.logits.dtype == np.float32
    assert scores.logits.tolist() == [1.5, -2.0]
    assert scores.truncated.tolist() == [False, True]
    assert scores.token_count.tolist() == [7, 7]


def test_fp16_logits_become_float32() -> None:
    half = {**outputs(0.0, 0.0), "logits": tensor("FP16", [1.5, -2.0], np.float16)}
    logits = decode_scores(half, n_documents=2).logits
    assert logits.dtype == np.float32
    assert logits.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [3e38, np.inf]])
def test_a_logit_that_is_not_finite_is_an_error_and_never_a_rank(bad: list[float]) -> None:
    logits = np.array([0.0, *bad], np.float32)
    n_bad = np.count_nonzero(~np.isfinite(logits))
    with pytest.raises(InvalidResponseError, match=rf"{n_bad} values that are not finite, the first .* in row [12]:"):
        finite(logits)


def test_the_largest_logits_are_finite_all_together() -> None:
    largest = np.full(1000, np.finfo(np.float32).max)
    assert finite(largest).tolist() == [float(largest[0])] * 1000


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_answer_without_an_output_is_refused(name: str) -> None:
    told = {key: value for key, value in outputs(1.0).items() if key != name}
    with pytest.raises(InvalidResponseError, match=rf"the answer has no {name}; it has \["):
        decode_scores(told, n_documents=1)


@pytest.mark.parametrize(
    ("name", "value", "fragment"),
    [
        ("logits", ("FP32", [3, 1], bytes(12)), r"logits has shape \(3, 1\): \(2, 1\) was expected"),
        ("logits", ("FP32", [2, 2], bytes(16)), r"logits has shape \(2, 2\)"),
        ("logits", ("INT64", [2, 1], bytes(16)), "logits has datatype INT64: FP32 or FP16 was expected"),
        ("logits", ("FP32", [2, 1], bytes(7)), "logits has 7 bytes: 2 values of FP32 were expected"),
        ("logits", ("FP32", [2, 1], b""), "logits has 0 bytes"),
        ("token_count", ("FP32", [2, 1], bytes(8)), "token_count has datatype FP32"),
        ("truncated", ("INT32", [2, 1], bytes(8)), "truncated has datatype INT32"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(name: str, value: Tensor, fragment: str) -> None:
    with pytest.raises(InvalidResponseError, match=fragment):
        decode_scores({**outputs(0.0, 1.0), name: value}, n_documents=2)


def test_answers_of_sub_requests_come_back_in_the_callers_order() -> None:
    first, second = (decode_scores(outputs(*logits), n_documents=len(logits)) for logits in ([5.0], [3.0, 4.0]))
    merged = merge([((2,), first), ((1, 0), second)], 3)
    assert merged.logits.tolist() == [4.0, 3.0, 5.0]
    assert merged.truncated.tolist() == [True, False, True]
    assert merged.token_count.tolist() == [7, 7, 7]


@given(st.binary(max_size=20), st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_the_bytes_on_the_wire_are_tritonclients_own(query: bytes, documents: list[bytes]) -> None:
    def expected(texts: list[bytes]) -> Any:
        return serialize_byte_tensor(np.array([[text] for text in texts], np.object_)).item()

    assert encode_pairs(query, documents) == (expected([query] * len(documents)), expected(documents))
