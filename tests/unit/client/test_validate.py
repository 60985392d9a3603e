from __future__ import annotations

import pytest

from triton_rerank import InvalidRequestError, RequestTooLargeError
from triton_rerank._validate import check_request, check_timeout, check_top_k
from triton_rerank.contract import MAX_TEXT_BYTES


@pytest.mark.parametrize(
    ("query", "fragment"),
    [
        ("", "query is blank"),
        (" \n\t ", "query is blank"),
        (None, "query is None of type NoneType: it must be a str"),
        (b"bytes", "query is b'bytes' of type bytes: it must be a str; decode it first"),
        (7, "query is 7 of type int"),
        ("\udfff", "query has a lone surrogate (U+DFFF) at character 0"),
    ],
)
def test_a_wrong_query_is_named_with_its_value(query: object, fragment: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        check_request(query, ["d"])
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("documents", "fragment"),
    [
        (None, "documents is None of type NoneType: it must be a list of str"),
        ("one text", "documents is 'one text' of type str: it must be a list of str"),
        (b"bytes", "of type bytes"),
        (3.5, "documents is 3.5 of type float"),
        (["a", None], "documents[1] is None of type NoneType"),
        ([b"x"], "documents[0] is b'x' of type bytes: it must be a str; decode it first"),
        (["a", "b", 5], "documents[2] is 5 of type int"),
        ([{"text": "a"}], "documents[0] is {'text': 'a'} of type dict"),
    ],
)
def test_wrong_documents_are_named_with_their_index(documents: object, fragment: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        check_request("q", documents)
    assert fragment in str(error.value)


def test_a_message_never_carries_more_than_80_characters_of_a_document() -> None:
    with pytest.raises(InvalidRequestError) as error:
        check_request("q", [b"secret " * 1000])
    assert str(error.value).count("secret") <= 12


def test_a_text_over_the_bound_is_too_large() -> None:
    with pytest.raises(RequestTooLargeError, match=rf"documents\[0\] has {MAX_TEXT_BYTES + 1} bytes") as error:
        check_request("q", ["x" * (MAX_TEXT_BYTES + 1)])
    assert error.value.http_status == 413


def test_any_iterable_of_texts_will_do() -> None:
    request = check_request("q", (text for text in ("a", "", "ü")))
    assert request.documents == ("a", "", "ü")
    assert request.encoded == (b"a", b"", b"\xc3\xbc")


@pytest.mark.parametrize(("top_k", "kept"), [(None, 3), (1, 1), (3, 3), (4, 3), (10**9, 3)])
def test_top_k_is_all_or_clamped_to_the_list(top_k: object, kept: int) -> None:
    assert check_top_k(top_k, 3) == kept


@pytest.mark.parametrize("top_k", [0, -1, 1.0, "2", True])
def test_a_wrong_top_k_is_refused_with_its_value_and_bound(top_k: object) -> None:
    with pytest.raises(InvalidRequestError, match="top_k is") as error:
        check_top_k(top_k, 3)
    assert repr(top_k) in str(error.value)
    assert "None for all" in str(error.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), None, "1", True])
def test_a_wrong_timeout_is_refused(timeout_s: object) -> None:
    with pytest.raises(InvalidRequestError, match="timeout_s is"):
        check_timeout(timeout_s)
