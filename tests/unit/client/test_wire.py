from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from triton_rerank import InvalidResponseError
from triton_rerank._wire import decode_logits, decode_scores, encode_pairs, merge, serialise
from triton_rerank.scorers import triton


def outputs(n: int = 2) -> dict[str, npt.NDArray[Any] | None]:
    return {
        "logits": np.zeros((n, 1), np.float32),
        "token_count": np.full((n, 1), 7, np.int32),
        "truncated": np.zeros((n, 1), np.bool_),
    }


def test_the_query_is_repeated_beside_each_document() -> None:
    tensors = encode_pairs(b"q", [b"", b"two"])
    assert tensors["query"].tolist() == [[b"q"], [b"q"]]
    assert tensors["document"].tolist() == [[b""], [b"two"]]


def test_fp16_logits_become_float32() -> None:
    logits = decode_logits(np.array([[1.5], [-2.0]], np.float16), n_documents=2)
    assert logits.dtype == np.float32
    assert logits.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_an_error_and_never_a_rank(bad: float) -> None:
    with pytest.raises(InvalidResponseError, match="1 values that are not finite, the first .* in row 1"):
        decode_logits(np.array([[0.0], [bad]], np.float32), n_documents=2)


@pytest.mark.parametrize(
    ("name", "value", "fragment"),
    [
        ("logits", None, "the answer has no logits; it has"),
        ("logits", np.zeros((3, 1), np.float32), r"logits has shape \(3, 1\): \(2, 1\) was expected"),
        ("logits", np.zeros((2, 2), np.float32), r"logits has shape \(2, 2\)"),
        ("logits", np.zeros((2, 1), np.int64), "logits has dtype int64"),
        ("token_count", np.zeros((2, 1), np.float32), "token_count has dtype float32"),
        ("truncated", np.zeros((2, 1), np.int32), "truncated has dtype int32"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(name: str, value: npt.NDArray[Any] | None, fragment: str) -> None:
    with pytest.raises(InvalidResponseError, match=fragment):
        decode_scores({**outputs(), name: value}, n_documents=2)


def test_answers_of_sub_requests_come_back_in_the_callers_order() -> None:
    first, second = outputs(1), outputs(2)
    first["logits"] = np.array([[5.0]], np.float32)
    second["logits"] = np.array([[3.0], [4.0]], np.float32)
    parts = [((2,), decode_scores(first, n_documents=1)), ((0, 1), decode_scores(second, n_documents=2))]
    assert merge(parts, 3).logits.tolist() == [3.0, 4.0, 5.0]


@given(st.binary(max_size=20), st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_the_bytes_on_the_wire_are_tritonclients_own(query: bytes, documents: list[bytes]) -> None:
    expected = {name: serialize_byte_tensor(array).item() for name, array in encode_pairs(query, documents).items()}
    assert serialise(query, documents) == expected


def test_this_tritonclient_takes_them_as_they_are() -> None:
    assert triton._RAW_CONTENT_IS_KNOWN
    for tensor, name in zip(triton._inputs(b"q", [b"", b"a\0b"]), ("query", "document"), strict=True):
        slow = triton._input(name, encode_pairs(b"q", [b"", b"a\0b"])[name])
        assert tensor._get_content() == slow._get_content()
        assert tensor._get_tensor() == slow._get_tensor()
