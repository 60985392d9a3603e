"""A caller's arguments -> a request that can be sent, or InvalidRequestError. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

from triton_rerank.contract import MAX_TEXT_BYTES
from triton_rerank.core.numbers import real, show, typed, whole
from triton_rerank.errors import InvalidRequestError, RequestTooLargeError
from triton_rerank.types import D

TextKey: TypeAlias = "str | Callable[[Any], str]"

T = TypeVar("T")

MAX_DOCUMENTS = 1_000_000  # of a call; a generator that never ends is stopped here
MAX_TIMEOUT_S = 86_400.0  # a day; gRPC takes a few hundred years for a deadline that has passed
_HEADER_NAME = re.compile(r"[0-9A-Za-z_.-]+")


class Secret(str):
    """A text that no repr shows, wherever it lies: an API key, or a header's value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


@dataclass(frozen=True, slots=True)
class Request(Generic[D]):
    """What the caller asked, checked.

    Attributes:
        query: UTF-8 bytes, not blank.
        documents: the caller's own objects.
        distinct: their different texts in UTF-8, in order of first appearance.
        places: for each document, the place of its text in ``distinct``; a range where all texts differ.
    """

    query: bytes
    documents: tuple[D, ...]
    distinct: tuple[bytes, ...]
    places: Sequence[int]


def check_request(query: object, documents: Iterable[D], text_key: TextKey = "text") -> Request[D]:
    """Check query and documents, find the documents' texts and encode them.

    Args:
        query: a text that is not blank.
        documents: texts, mappings with the key ``text_key``, or objects with an attribute of that name; an empty text
            keeps its place.
        text_key: name of key or attribute, or a function from a document to its text (strings need none).

    Raises:
        InvalidRequestError: a wrong type, a blank query, a document without a text, or a text that is not Unicode.
        RequestTooLargeError: a text of more than `MAX_TEXT_BYTES`, or more than `MAX_DOCUMENTS` documents.
    """
    encoded_query = encode_text("query", query)
    if not encoded_query.strip():
        raise InvalidRequestError("query is blank: give the text that the documents are to be ranked by")
    items = _listed("documents", documents)
    encoded = _encoded(items, text_key)
    distinct = tuple(dict.fromkeys(encoded))
    places: Sequence[int] = range(len(encoded))
    if len(distinct) < len(encoded):
        place_of = {text: place for place, text in enumerate(distinct)}
        places = tuple(map(place_of.__getitem__, encoded))
    return Request(encoded_query, tuple(items), distinct, places)


def check_many(queries: Iterable[str], document_lists: Iterable[Iterable[D]]) -> list[tuple[str, Iterable[D]]]:
    """Pair queries with their documents.

    Raises:
        InvalidRequestError: not two lists of the same length. What is in them is checked query by query.
    """
    asked, lists = _listed("queries", queries), _listed("document_lists", document_lists)
    if len(asked) != len(lists):
        raise InvalidRequestError(
            f"queries has {len(asked)} entries and document_lists {len(lists)}: each query needs a list of its own"
        )
    return list(zip(asked, lists, strict=True))


def check_text_key(text_key: object) -> TextKey:
    """Where a document's text is.

    Raises:
        InvalidRequestError: neither a name nor a function.
    """
    if isinstance(text_key, str) or callable(text_key):
        return text_key
    raise InvalidRequestError(f"text_key is {show(text_key)}: it must be the name of a key, or a function")


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
    must = "a whole number from 1, or None for all"
    return min(whole("top_k", top_k, most=math.inf, must=must, error=InvalidRequestError), n_documents)


def check_timeout(timeout_s: object) -> float:
    """Seconds for the whole call.

    Raises:
        InvalidRequestError: not a number, not above 0, or above `MAX_TIMEOUT_S`.
    """
    must = f"a number of seconds above 0, and {MAX_TIMEOUT_S:g} at most"
    return real("timeout_s", timeout_s, least=0, above=True, most=MAX_TIMEOUT_S, must=must, error=InvalidRequestError)


def check_min_score(min_score: object) -> float | None:
    """Least score to return, on the scale of the model's activation.

    Raises:
        InvalidRequestError: not a finite number.
    """
    if min_score is None:
        return None
    return real("min_score", min_score, must="a number, or None for no bound", error=InvalidRequestError)


def check_tokens(name: str, value: object) -> int | None:
    """A bound in tokens, None for the model's own; the server knows how many its model takes.

    Raises:
        InvalidRequestError: not a whole number from 1 to `MAX_WHOLE`.
    """
    return None if value is None else whole(name, value, error=InvalidRequestError)


def check_instruction(instruction: object) -> str | None:
    """What a model with a prompt is told to look for, None for the prompt's own; the server knows if it takes one.

    Raises:
        InvalidRequestError: not a text, or blank.
        RequestTooLargeError: as for `encode_text`.
    """
    if instruction is None:
        return None
    if not encode_text("instruction", instruction).strip():
        raise InvalidRequestError("instruction is blank: give a text, or None for the model's own")
    return str(instruction)


def check_headers(headers: Mapping[Any, Any] | None) -> dict[str, str]:
    """Metadata of a call, names in lower case as gRPC wants them.

    Raises:
        InvalidRequestError: not a mapping, or a name or value that gRPC refuses; a value is not shown, it is a secret.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidRequestError(f"headers is of type {type(headers).__name__}: it must map names to values")
    for name, value in headers.items():
        named = isinstance(name, str) and _HEADER_NAME.fullmatch(name) and not name.lower().endswith("-bin")
        if not named or not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise InvalidRequestError(
                f"headers has {show(name)} with a value of type {type(value).__name__}: a name is made of letters, "
                "digits, '-', '_' and '.', and does not end with -bin; a value is printable ASCII"
            )
    return {name.lower(): Secret(value) for name, value in headers.items()}


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
        raise InvalidRequestError(f"{name} is {typed(text)}: it must be a str{hint}")
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


def _encoded(items: Sequence[object], text_key: TextKey) -> list[bytes]:
    try:  # most requests are strings that need no look at each
        encoded = list(map(str.encode, items))  # type: ignore[arg-type]
        if not encoded or max(map(len, encoded)) <= MAX_TEXT_BYTES:
            return encoded
    except (TypeError, UnicodeEncodeError):
        pass  # one is no string, or no Unicode: look at each, and say which
    return [_encode_document(f"documents[{index}]", item, text_key) for index, item in enumerate(items)]


def _encode_document(name: str, item: object, text_key: TextKey) -> bytes:
    return encode_text(name, item if isinstance(item, str | bytes | bytearray) else _text_of(name, item, text_key))


def _text_of(name: str, item: object, text_key: TextKey) -> object:
    if callable(text_key):
        return _run(name, lambda: text_key(item))
    if isinstance(item, Mapping):
        if text_key not in item:
            raise InvalidRequestError(
                f"{name} has no key {text_key!r}, its keys are {show(list(item))}: "
                "name the one with the text by text_key="
            )
        return item[text_key]
    if not _run(name, lambda: hasattr(item, text_key)):
        raise InvalidRequestError(
            f"{name} is {typed(item)}: it must be a str, a mapping with the key "
            f"{text_key!r} or an object with that attribute; text_key= names another, or is a function"
        )
    return _run(name, lambda: getattr(item, text_key))


def _run(name: str, work: Callable[[], T]) -> T:
    """Run code of the caller's own; what it raises must not end the other queries of a call."""
    try:
        return work()
    except Exception as exc:
        raise InvalidRequestError(
            f"{name} cannot be read, {type(exc).__name__} was raised ({show(exc)}): mend the code that it comes from"
        ) from exc


def _listed(name: str, values: Iterable[D]) -> list[D]:
    if isinstance(values, str | bytes | bytearray | Mapping) or not isinstance(values, Iterable):
        raise InvalidRequestError(f"{name} is {typed(values)}: it must be a list, one entry each")
    listed = _run(name, lambda: list(islice(values, MAX_DOCUMENTS + 1)))
    if len(listed) > MAX_DOCUMENTS:
        raise RequestTooLargeError(
            f"{name} has more than {MAX_DOCUMENTS} entries: retrieve fewer, or check that it ends"
        )
    return listed
