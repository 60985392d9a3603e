"""What a language model answered, read with care: an order that is clear is repaired, any other is an error. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from triton_rerank import InvalidResponseError

_BRACKETED = re.compile(r"\[(\d{1,4})\]")


def read_order(text: str, n: int) -> list[int]:
    """The order of a window's n documents, from an answer such as ``{"order": [3, 1, 2]}`` or ``[3] > [1] > [2]``.

    Numbers that stand twice count once, invented ones are dropped, and missing ones follow in the order in which they
    were. The order is clear if at least half of the documents are named, and no more numbers are wrong than right.

    Args:
        text: the answer, with whatever prose around it.
        n: documents of the window, numbered from 1.

    Returns:
        Every place from 0 to n − 1 once, best first.

    Raises:
        InvalidResponseError: the order is not clear.
    """
    numbers = _numbers(text)
    named = list(dict.fromkeys(number - 1 for number in numbers if 1 <= number <= n))
    wrong = len(numbers) - len(named)
    if len(named) * 2 < n or wrong > len(named):
        raise InvalidResponseError(
            f"the order is not clear: {len(named)} of {n} documents are named, {wrong} numbers are doubled or "
            f"invented, in {text[:80]!r}"
        )
    return named + [place for place in range(n) if place not in named]


def read_score(text: str) -> tuple[float, str]:
    """A score from 0 to 10 and its reason, from an answer such as ``{"score": 7, "reason": "…"}``.

    Raises:
        InvalidResponseError: no number, or one out of bounds.
    """
    content = next((one for one in _json_values(text) if isinstance(one, dict) and "score" in one), {})
    score = content.get("score")
    if score is None and re.fullmatch(r"\s*\d+(\.\d+)?\s*", text):
        score = float(text)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 10 or math.isnan(score):
        raise InvalidResponseError(f"no score from 0 to 10 in {text[:80]!r}")
    return float(score), str(content.get("reason", ""))


def _numbers(text: str) -> list[int]:
    for value in _json_values(text):
        order = value.get("order") if isinstance(value, dict) else value
        if isinstance(order, list) and len(order) > 1:
            return [number for number in map(_number, order) if number is not None]
    return [int(number) for number in _BRACKETED.findall(text)]


def _number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    found = re.fullmatch(r"\[?(\d{1,4})\]?", str(value).strip())
    return int(found.group(1)) if found else None


def _json_values(text: str) -> list[Any]:
    """Every JSON object or array in a text, from left to right, whole ones only."""
    decoder, values, place = json.JSONDecoder(), [], 0
    while (begin := re.compile(r"[\[{]").search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, begin.start())
            values.append(value)
        except (ValueError, RecursionError):
            place = begin.start() + 1
    return values
