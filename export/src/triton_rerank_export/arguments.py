"""Options of the commands that are fields of a dataclass: type, default and help stand there, once.

A field is declared as ``name: Annotated[type, "help"] = default``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Choices = TypeVar("Choices")


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def add_options(parser: Any, kind: type, names: Iterable[str], *, shown: type | None = None) -> None:
    """Add an option for each of these fields; one that is not given has the field's default.

    Args:
        parser: of argparse, or a group of it.
        kind: the dataclass.
        names: of its fields, in the order of ``--help``.
        shown: class whose defaults ``--help`` tells, where those of ``kind`` only say that nothing was given.
    """
    hints = get_type_hints(kind, include_extras=True)
    for name in names:
        default, told = getattr(kind, name), getattr(shown or kind, name)
        declared, text = get_args(hints[name])
        if told not in ((), "") and not isinstance(told, bool | None):
            text = f"{text}; default {told}"
        parser.add_argument(flag(name), default=default, help=text, **_form(declared))


def chosen(kind: type[Choices], options: argparse.Namespace) -> Choices:
    """The dataclass with what was chosen; fields that the command has no option for keep their default."""
    names = [field.name for field in dataclasses.fields(kind) if hasattr(options, field.name)]  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in names})


def _form(declared: Any) -> dict[str, Any]:
    """What argparse is told of a type."""
    if NoneType in get_args(declared):
        declared = next(each for each in get_args(declared) if each is not NoneType)
    if declared is bool:
        return {"action": "store_true"}
    if get_origin(declared) is Literal:
        return {"choices": get_args(declared)}
    return {"type": _whole_numbers if get_origin(declared) is tuple else declared}


def _whole_numbers(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in value.split(",")) if value else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: it must be whole numbers, such as 64,128,512") from None
