"""The labels of a classifier, and which one's logit is served where there are several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triton_rerank_export.errors import ExportError

_SHOWN = 20  # names in a message


@dataclass(frozen=True)
class Label:
    """One of several labels.

    Attributes:
        index: its row of the classifier.
        name: in config.json's id2label.
        of: labels that the classifier has.
    """

    index: int
    name: str
    of: int

    def __str__(self) -> str:
        return f"{self.index} ({self.name})"


def count(config: Mapping[str, Any]) -> int:
    """Labels of the classifier, as transformers counts them.

    Raises:
        ExportError: num_labels is no number from 1.
    """
    names = config.get("id2label")
    if isinstance(names, dict | list | tuple) and names:
        return len(names)
    stated = config.get("num_labels", 2)  # transformers' default
    if isinstance(stated, bool) or not isinstance(stated, int) or stated < 1:
        raise ExportError(f"the classifier has {stated!r:.80} labels (num_labels in config.json); 1 or more")
    return stated


def choose(config: Mapping[str, Any], asked: str | None) -> Label | None:
    """The label whose logit is the score; None for the only one.

    Args:
        config: content of config.json.
        asked: number or name of a label; None: there must be one only.

    Raises:
        ExportError: there are several and none is asked for, or there is no such label; lists those that there are.
    """
    number = count(config)
    if asked is None and number > 1:
        raise ExportError(
            f"the classifier has {number} labels; a reranker has 1 (num_labels in config.json). Of two, relevant and "
            "not, save it with one: the weights of the one less those of the other, whose sigmoid is the softmax of "
            f"both. Or let the logit of one be the score: --label with its number or name ({_listed(config, number)})"
        )
    if asked is None:
        return None
    rows = range(number)
    found = [row for row in rows if asked == str(row)] or [row for row in rows if asked == _name(config, row)]
    if len(found) != 1:
        what = "there are" if not found else "several are called so, of"
        raise ExportError(f"--label {asked!r:.80} is not a label of it; {what} {_listed(config, number)}")
    return Label(found[0], _name(config, found[0]), number) if number > 1 else None


def _name(config: Mapping[str, Any], index: int) -> str:
    names = config.get("id2label")
    if isinstance(names, list | tuple) and names:
        return str(names[index])
    return str(names.get(str(index), f"LABEL_{index}")) if isinstance(names, dict) else f"LABEL_{index}"


def _listed(config: Mapping[str, Any], number: int) -> str:
    shown = ", ".join(f"{at} ({_name(config, at):.40})" for at in range(min(number, _SHOWN)))
    return shown if number <= _SHOWN else f"{shown} and {number - _SHOWN} more"
