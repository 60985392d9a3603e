"""Objects that are pickled and copied as what they were made with: connections, locks and memories stay behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T", bound="Remade")


@dataclass(frozen=True, slots=True, repr=False)  # there may be a key among them
class MadeWith:
    """The arguments of a constructor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Remade:
    """Made anew by the same arguments wherever a pickle is loaded, and where `copy` copies it.

    A copy has connections of its own, opened at its first call; what the original counted or remembered it does not
    have. Arguments that cannot be pickled (a lambda, a lock) are the pickler's errors; secrets among them are in the
    pickle, since the copy needs them.
    """

    _made_with: MadeWith

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """Note the arguments."""
        self = super().__new__(cls)
        self._made_with = MadeWith(args, kwargs)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (type(self), self._made_with.args, self._made_with.kwargs)


def _remake(cls: type[T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    return cls(*args, **kwargs)
