"""A caller's numbers, checked: Python's own and numpy's alike, never a boolean. Pure."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np

from triton_rerank.errors import ConfigurationError, RerankError

MAX_WHOLE = 2**31 - 1  # Triton's parameters are 64 bits wide; nothing that is counted here comes near
_SHOWN_CHARACTERS = 80  # of a value, which may be a document


def whole(
    name: str,
    value: object,
    *,
    least: int = 1,
    most: float = MAX_WHOLE,
    must: str = "",
    error: type[RerankError] = ConfigurationError,
) -> int:
    """A whole number within bounds: an int, one of numpy's, or whatever else Python takes for an index.

    Args:
        name: what messages call it.
        value: what the caller gave.
        least: lowest that is right.
        most: highest that is right.
        must: what it must be, for the message; "" tells the bounds.
        error: class of the error.

    Raises:
        RerankError: of the class ``error``; no whole number, or outside the bounds.
    """
    number = None if isinstance(value, bool | np.bool_) else _index(value)
    if number is None or not least <= number <= most:
        must = must or f"a whole number from {least} to {most}"
        raise error(f"{name} is {described(value)}: it must be {must}")
    return number


def real(
    name: str,
    value: object,
    *,
    must: str,
    least: float = -math.inf,
    most: float = math.inf,
    above: bool = False,
    error: type[RerankError] = ConfigurationError,
) -> float:
    """A finite number within bounds: Python's own or numpy's.

    Args:
        name: what messages call it.
        value: what the caller gave.
        must: what it must be, for the message.
        least: lowest that is right.
        most: highest that is right.
        above: ``least`` itself is not right.
        error: class of the error.

    Raises:
        RerankError: of the class ``error``; no finite number, or outside the bounds.
    """
    number = _finite(value)
    if number is None or not least <= number <= most or (above and number == least):
        raise error(f"{name} is {described(value)}: it must be {must}")
    return number


def plain(value: Any) -> Any:
    """One of numpy's numbers as Python's own, which pydantic and YAML want; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def described(value: object) -> str:
    """A value for a message, at most 80 characters of it; with its type, unless that is seen: ``3`` may be numpy's."""
    return show(value) if type(value) in (int, float, bool, str, type(None)) else typed(value)


def typed(value: object) -> str:
    """A value for a message, at most 80 characters of it, with its type."""
    return f"{show(value)} of type {type(value).__name__}"


def show(value: object) -> str:
    """A value as Python writes it, at most 80 characters."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a whole number of thousands of digits, or the caller's own __repr__
        text = f"(a {type(value).__name__} that cannot be shown)"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _index(value: object) -> int | None:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _finite(value: object) -> float | None:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float holds
        return None
    return number if math.isfinite(number) else None
