"""Reads the fields of a foreign request: lenient where clients differ, strict where a mistake would be unseen. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from triton_rerank_gateway.failures import GatewayError

_SHOWN = 80  # characters of a value in a message
_WORDS = {"true": True, "false": False}


class Fields:
    """The JSON object of a request. A field that is null is a field that is absent, and unknown fields are not read.

    Args:
        body: decoded JSON.

    Raises:
        GatewayError: it is no object.
    """

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict):
            raise GatewayError("invalid", f"the body is {_kind(body)}: it must be a JSON object")
        self._body: dict[str, Any] = body

    def __contains__(self, name: object) -> bool:
        return name in self._body

    def get(self, name: str) -> Any:
        """The value as it came, None where there is none."""
        return self._body.get(name)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.get(name)
        if value is None or isinstance(value, str):
            return value
        raise wrong(name, value, "it must be a string")

    def query(self, name: str = "query") -> str:
        """The query: required, not blank."""
        return checked_query(name, self.get(name))

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean; some clients send the words as strings."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        raise wrong(name, value, "it must be true or false")

    def whole(self, name: str, *, least: int = 1) -> int | None:
        """A whole number."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise wrong(name, value, f"it must be a whole number from {least}")
        return value

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise wrong(name, value, "it must be a number")
        return float(value)

    def count(self, name: str) -> int | None:
        """How many results to return: absent, null and 0 mean all of them."""
        return self.whole(name, least=0) or None

    def documents(self, name: str, *, rank_fields: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Texts of the documents, and the documents as they came: strings, or objects with a text.

        Args:
            name: of the field.
            rank_fields: keys of an object whose values make its text; none means its key ``text``.

        Raises:
            GatewayError: no list, an empty one, or an entry without a text.
        """
        given = self.get(name)
        if not isinstance(given, list):
            raise wrong(name, given, "it must be a list of texts")
        if not given:
            raise GatewayError("empty", f"{name} is empty: give at least one text to rank")
        return tuple(_text(f"{name}[{index}]", item, rank_fields) for index, item in enumerate(given)), tuple(given)


def checked_query(name: str, value: object) -> str:
    """A text that documents can be ranked by.

    Raises:
        GatewayError: not a string, or blank.
    """
    if not isinstance(value, str):
        raise wrong(name, value, "it must be a string")
    if not value.strip():
        raise GatewayError("invalid", f"{name} is blank: give the text that the documents are to be ranked by")
    return value


def wrong(name: str, value: object, bound: str) -> GatewayError:
    """The error of a field that is not what it must be."""
    return GatewayError("invalid", f"{name} is {_kind(value)}{_shown(value)}: {bound}")


def _text(name: str, item: object, rank_fields: Sequence[str]) -> str:
    if isinstance(item, str):
        return item
    if not isinstance(item, Mapping):
        raise wrong(name, item, "it must be a string, or an object with the key 'text'")
    if rank_fields:
        return _joined(name, item, rank_fields)
    text = item.get("text")
    if not isinstance(text, str):
        raise wrong(f"{name}.text", text, "it must be a string")
    return text


def _joined(name: str, item: Mapping[str, Any], rank_fields: Sequence[str]) -> str:
    absent = [field for field in rank_fields if field not in item]
    if absent:
        raise GatewayError("invalid", f"{name} has no key {absent[0]!r:.{_SHOWN}}: rank_fields names it")
    return "\n".join(str(item[field]) for field in rank_fields if item[field] is not None)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "absent or null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    if value is None or isinstance(value, dict | list):
        return ""
    text = str(value)
    return f" ({text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'})"
