"""Arguments as users give them: what is taken, and what is refused by name, with its value and its bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from triton_rerank import InvalidRequestError, RequestTooLargeError
from triton_rerank.contract import MAX_TEXT_BYTES
from triton_rerank.core.validate import (
    MAX_DOCUMENTS,
    MAX_TIMEOUT_S,
    check_headers,
    check_instruction,
    check_many,
    check_min_score,
    check_request,
    check_text_key,
    check_timeout,
    check_tokens,
    check_top_k,
)

NAN, INFINITY = float("nan"), float("inf")
HUGE = 10**5000  # Python refuses to print it, and no float holds it


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Gone:
    @property
    def text(self) -> str:
        raise ConnectionError("the database is gone")


def shortly(value: object) -> str | None:
    """A test's id, where pytest would print a number that Python does not print."""
    return "huge" if isinstance(value, int) and abs(value) > 2**70 else None


def stops_with(exc: Exception) -> Iterator[str]:
    yield "a"
    raise exc


@pytest.mark.parametrize(
    ("query", "fragment"),
    [
        ("", "query is blank"),
        (" \n\t ", "query is blank"),
        (None, "query is None of type NoneType: it must be a str"),
        (b"bytes", "query is b'bytes' of type bytes: it must be a str; decode it first"),
        (7, "query is 7 of type int"),
        ("\udfff", "query has a lone surrogate (U+DFFF) at character 0"),
        (Unprintable(), "query is (a Unprintable that cannot be shown) of type Unprintable"),
    ],
)
def test_a_wrong_query_is_named_with_its_value(query: object, fragment: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        check_request(query, ["d"])
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("documents", "fragment"),
    [
        (None, "documents is None of type NoneType: it must be a list"),
        ("one text", "documents is 'one text' of type str: it must be a list"),
        (b"bytes", "documents is b'bytes' of type bytes"),
        ({"a": 1}, "documents is {'a': 1} of type dict: it must be a list"),
        (3.5, "documents is 3.5 of type float"),
        (["a", None], "documents[1] is None of type NoneType: it must be a str, a mapping with the key 'text'"),
        ([b"x"], "documents[0] is b'x' of type bytes: it must be a str; decode it first"),
        (["a", "b", 5], "documents[2] is 5 of type int"),
        (
            [{"body": "a"}],
            "documents[0] has no key 'text', its keys are ['body']: name the one with",
        ),
        ([{"text": 5}], "documents[0] is 5 of type int: it must be a str"),
        ([SimpleNamespace(text=b"x")], "documents[0] is b'x' of type bytes: it must be a str; decode it first"),
        (["a", "b \ud800"], "documents[1] has a lone surrogate (U+D800) at character 2"),
        ([Unprintable()], "documents[0] is (a Unprintable that cannot be shown) of type Unprintable"),
        ([Gone()], "documents[0] cannot be read, ConnectionError was raised (ConnectionError('the database is gone'))"),
        (stops_with(OSError("disk")), "documents cannot be read, OSError was raised (OSError('disk'))"),
    ],
)
def test_wrong_documents_are_named_with_their_index(documents: Any, fragment: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        check_request("q", documents)
    assert fragment in str(error.value)


def test_a_message_never_carries_more_than_80_characters_of_a_document() -> None:
    for documents in ([b"secret " * 1000], [{"body": "secret " * 1000}], stops_with(OSError("secret " * 1000))):
        with pytest.raises(InvalidRequestError) as error:
            check_request("q", documents)
        assert str(error.value).count("secret") <= 12


def test_what_the_callers_own_code_raised_is_the_cause() -> None:
    cause = KeyError("b")
    with pytest.raises(InvalidRequestError) as error:
        check_request("q", stops_with(cause))
    assert error.value.__cause__ is cause
    with pytest.raises(InvalidRequestError, match=r"documents\[0\] cannot be read, KeyError was raised"):
        check_request("q", [{"a": "x"}], lambda document: str(document["b"]))


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_program_passes(signal: type[BaseException]) -> None:
    def interrupted() -> Iterator[str]:
        yield "a"
        raise signal

    with pytest.raises(signal):
        check_request("q", interrupted())


def test_a_text_over_the_bound_is_too_large() -> None:
    with pytest.raises(RequestTooLargeError, match=rf"documents\[0\] has {MAX_TEXT_BYTES + 1} bytes") as error:
        check_request("q", ["x" * (MAX_TEXT_BYTES + 1)])
    assert error.value.http_status == 413
    with pytest.raises(RequestTooLargeError, match="query has"):
        check_request("ü" * (MAX_TEXT_BYTES // 2 + 1), ["x"])
    assert check_request("q", ["x" * MAX_TEXT_BYTES]).distinct == (b"x" * MAX_TEXT_BYTES,)


def test_a_generator_that_does_not_end_is_stopped() -> None:
    with pytest.raises(RequestTooLargeError, match=f"documents has more than {MAX_DOCUMENTS} entries"):
        check_request("q", itertools.repeat("a"))


def test_any_iterable_of_texts_will_do() -> None:
    for documents in (["a", "", "ü"], ("a", "", "ü"), (text for text in ("a", "", "ü")), np.array(["a", "", "ü"])):
        request = check_request("q", documents)
        assert request.documents == ("a", "", "ü")
        assert request.distinct == (b"a", b"", b"\xc3\xbc")
        assert tuple(request.places) == (0, 1, 2)


def test_equal_texts_have_one_place_whatever_carries_them() -> None:
    documents = ["a", {"text": "b"}, SimpleNamespace(text="a"), MappingProxyType({"text": "b", "id": 3}), "c"]
    request = check_request("q", documents)
    assert request.distinct == (b"a", b"b", b"c")
    assert request.places == (0, 1, 0, 1, 2)
    assert all(kept is given for kept, given in zip(request.documents, documents, strict=True))


def test_the_text_is_where_text_key_says() -> None:
    assert check_request("q", [{"body": "a"}, SimpleNamespace(body="b")], "body").distinct == (b"a", b"b")
    assert check_request("q", [("x", "a"), "b"], lambda pair: pair[1]).distinct == (b"a", b"b")


@pytest.mark.parametrize("text_key", ["text", len, str.upper])
def test_text_key_is_a_name_or_a_function(text_key: Any) -> None:
    assert check_text_key(text_key) is text_key


@pytest.mark.parametrize("text_key", [None, 5, b"text", ["text"]])
def test_another_text_key_is_refused(text_key: object) -> None:
    with pytest.raises(InvalidRequestError, match="text_key is"):
        check_text_key(text_key)


@pytest.mark.parametrize(("top_k", "kept"), [(None, 3), (1, 1), (3, 3), (4, 3), (10**9, 3), (HUGE, 3)], ids=shortly)
def test_top_k_is_all_or_clamped_to_the_list(top_k: object, kept: int) -> None:
    assert check_top_k(top_k, 3) == kept


@pytest.mark.parametrize("top_k", [0, -1, 1.0, "2", True, NAN])
def test_a_wrong_top_k_is_refused_with_its_value_and_bound(top_k: object) -> None:
    with pytest.raises(InvalidRequestError, match="top_k is") as error:
        check_top_k(top_k, 3)
    assert repr(top_k) in str(error.value)
    assert "None for all" in str(error.value)


@pytest.mark.parametrize("timeout_s", [1e-9, 1, 2.5, MAX_TIMEOUT_S])
def test_a_timeout_is_any_number_of_seconds_up_to_a_day(timeout_s: float) -> None:
    assert check_timeout(timeout_s) == timeout_s


@pytest.mark.parametrize(
    "timeout_s", [0, -1, NAN, INFINITY, None, "1", True, MAX_TIMEOUT_S + 1, 1e300, HUGE, -HUGE], ids=shortly
)
def test_a_wrong_timeout_is_refused(timeout_s: object) -> None:
    with pytest.raises(InvalidRequestError, match="timeout_s is"):
        check_timeout(timeout_s)


@pytest.mark.parametrize("min_score", [None, 0, -3, 0.5, 1e300])
def test_min_score_is_any_finite_number(min_score: object) -> None:
    assert check_min_score(min_score) == min_score


@pytest.mark.parametrize("min_score", [NAN, INFINITY, -INFINITY, "0.5", True, HUGE, [0.5]], ids=shortly)
def test_a_wrong_min_score_is_refused(min_score: object) -> None:
    with pytest.raises(InvalidRequestError, match="min_score is"):
        check_min_score(min_score)


def test_a_bound_in_tokens_is_the_models_own_or_a_whole_number() -> None:
    assert check_tokens("max_query_tokens", None) is None
    assert check_tokens("max_query_tokens", np.int32(7)) == 7
    with pytest.raises(InvalidRequestError, match="max_query_tokens is 0: it must be a whole number from 1 to"):
        check_tokens("max_query_tokens", 0)


def test_numpys_numbers_are_numbers_like_any_other() -> None:
    assert check_top_k(np.int64(2), 3) == check_top_k(np.uint8(2), 3) == check_top_k(np.array(2), 3) == 2
    assert check_timeout(np.float32(0.5)) == check_timeout(np.array(0.5)) == 0.5
    assert check_timeout(np.int64(2)) == 2.0
    assert check_min_score(np.float16(0.5)) == 0.5
    assert type(check_min_score(np.float64(0.5))) is float
    assert type(check_top_k(np.int64(2), 3)) is int


@pytest.mark.parametrize("top_k", [np.float64(2), np.bool_(True), np.array([2]), np.array(2.0), Decimal(2)])
def test_what_looks_right_and_is_not_is_told_with_its_type(top_k: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"of type {type(top_k).__name__}: it must be a whole number"):
        check_top_k(top_k, 3)


@pytest.mark.parametrize("min_score", [np.float64("nan"), np.float32("inf"), np.bool_(True), np.array([0.5]), 1j])
def test_one_of_numpys_that_is_no_finite_number_is_refused(min_score: object) -> None:
    with pytest.raises(InvalidRequestError, match="min_score is"):
        check_min_score(min_score)


def test_a_headers_value_is_shown_nowhere() -> None:
    headers = check_headers({"Authorization": "Bearer s3cret"})
    assert "s3cret" not in repr(headers) + repr(tuple(headers.items())) + repr([headers])
    assert (headers["authorization"], f"{headers['authorization']}") == ("Bearer s3cret", "Bearer s3cret")


def test_each_query_has_a_list_of_its_own() -> None:
    assert check_many(iter(["a", "b"]), [["x"], None]) == [("a", ["x"]), ("b", None)]  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="queries has 2 entries and document_lists 1"):
        check_many(["a", "b"], [["x"]])
    with pytest.raises(InvalidRequestError, match="queries is 'ab' of type str"):
        check_many("ab", [["x"], ["y"]])
    with pytest.raises(InvalidRequestError, match="queries cannot be read, OSError"):
        check_many(stops_with(OSError("disk")), [])


def test_headers_are_lowered_as_grpc_wants_them() -> None:
    assert check_headers(None) == {}
    assert check_headers({"X-Tenant": "a b", "authorization": ""}) == {"x-tenant": "a b", "authorization": ""}


@pytest.mark.parametrize(
    "headers",
    [
        {"": "secret"},
        {"a b": "secret"},
        {"a\n": "secret"},
        {"ü": "secret"},
        {":path": "secret"},
        {"a-bin": "secret"},
        {"A-BIN": "secret"},
        {5: "secret"},
        {"a": "secret\r\nb: c"},
        {"a": "secret ü"},
        {"a": b"secret"},
        {"a": None},
        [("a", "secret")],
        "a=secret",
    ],
)
def test_a_wrong_header_is_refused_and_its_value_never_shown(headers: Any) -> None:
    with pytest.raises(InvalidRequestError, match="^headers ") as error:
        check_headers(headers)
    assert "secret" not in str(error.value)


def test_an_instruction_is_a_text_that_is_not_blank() -> None:
    assert check_instruction(None) is None
    assert check_instruction("find code\n") == "find code\n"
    for wrong, words in ((7, "instruction is"), (" \n", "instruction is blank"), ("\ud800", "lone surrogate")):
        with pytest.raises(InvalidRequestError, match=words):
            check_instruction(wrong)
    with pytest.raises(RequestTooLargeError, match="instruction has"):
        check_instruction("x" * (MAX_TEXT_BYTES + 1))
