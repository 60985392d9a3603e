"""A caller's arguments -> a request that can be sent, or InvalidRequestError. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from triton_rerank.contract import MAX_TEXT_BYTES
from triton_rerank.errors import InvalidRequestError, RequestTooLargeError

_SHOWN_CHARACTERS = 80  # of a document, in a message


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller asked, checked.

    Attributes:
        query: UTF-8 bytes, not blank.
        documents: the texts as given.
        encoded: the same as UTF-8 bytes.
    """

    query: bytes
    documents: tuple[str, ...]
    encoded: tuple[bytes, ...]


def check_request(query: object, documents: object) -> Request:
    """Check query and documents and encode them.

    Args:
        query: a text that is not blank.
        documents: an iterable of texts; an empty text keeps its place.

    Raises:
        InvalidRequestError: a wrong type, a blank query, or a text that is not Unicode.
        RequestTooLargeError: a text of more than `MAX_TEXT_BYTES`.
    """
    encoded_query = encode_text("query", query)
    if not encoded_query.strip():
        raise InvalidRequestError("query is blank: give the text that the documents are to be ranked by")
    texts = _document_list(documents)
    encoded = tuple(encode_text(f"documents[{index}]", text) for index, text in enumerate(texts))
    return Request(encoded_query, tuple(str(text) for text in texts), encoded)


def check_top_k(top_k: object, n_documents: int) -> int:
    """How many documents to return.

    Args:
        top_k: None for all; more than there are gives all.
        n_documents: documents of the request.

    Raises:
        InvalidRequestError: not a whole number, or under 1.
    """
    if top_k is None:
        return n_documents
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise InvalidRequestError(f"top_k is {_show(top_k)}: it must be a whole number from 1, or None for all")
    if top_k < 1:
        raise InvalidRequestError(f"top_k is {top_k}: it must be at least 1, or None for all")
    return min(top_k, n_documents)


def check_timeout(timeout_s: object) -> float:
    """Seconds for the whole call.

    Raises:
        InvalidRequestError: not a number, not finite, or not above 0.
    """
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not number or not math.isfinite(timeout_s) or timeout_s <= 0:  # type: ignore[arg-type, operator]
        raise InvalidRequestError(f"timeout_s is {_show(timeout_s)}: it must be a number of seconds above 0")
    return float(timeout_s)  # type: ignore[arg-type]


def encode_text(name: str, text: object) -> bytes:
    """Encode one text.

    Args:
        name: what the message calls it, for example ``documents[3]``.
        text: a string of at most `MAX_TEXT_BYTES` bytes of UTF-8.

    Raises:
        InvalidRequestError: not a string, or a lone surrogate in it.
        RequestTooLargeError: too many bytes.
    """
    if not isinstance(text, str):
        hint = "; decode it first" if isinstance(text, bytes | bytearray) else ""
        raise InvalidRequestError(f"{name} is {_show(text)} of type {type(text).__name__}: it must be a str{hint}")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidRequestError(
            f"{name} has a lone surrogate (U+{ord(text[exc.start]):04X}) at character {exc.start}: "
            "it is no Unicode text; decode its source with errors='replace'"
        ) from exc
    if len(encoded) > MAX_TEXT_BYTES:
        raise RequestTooLargeError(
            f"{name} has {len(encoded)} bytes: the bound is {MAX_TEXT_BYTES}; the model reads its first few hundred "
            "words only, so cut it or split it into passages"
        )
    return encoded


def _document_list(documents: object) -> list[object]:
    if isinstance(documents, str | bytes | bytearray) or not isinstance(documents, Iterable):
        raise InvalidRequestError(
            f"documents is {_show(documents)} of type {type(documents).__name__}: it must be a list of str"
        )
    return list(documents)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
