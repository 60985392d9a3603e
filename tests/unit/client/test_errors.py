"""The tree at the head of errors.py is the classes: same parents, same attributes."""

from __future__ import annotations

import re

import triton_rerank
from triton_rerank import errors

ROW = re.compile(r"[├└]─ (\w+)(?: \((\w+)\))?\s+(?:\((base)|(yes|no)\s+(yes|no)\s+(\d+))")


def test_the_drawn_tree_is_the_class_tree() -> None:
    drawn = {row[1]: row for row in ROW.finditer(errors.__doc__ or "")}
    classes = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.RerankError)}
    assert set(drawn) == set(classes) - {"RerankError"}
    for name, row in drawn.items():
        cls = classes[name]
        if row[2]:
            assert row[2] in [base.__name__ for base in cls.__mro__]
        if not row[3]:
            assert (cls.retryable, cls.falls_back, cls.http_status) == (row[4] == "yes", row[5] == "yes", int(row[6]))


def test_every_error_is_exported() -> None:
    names = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.RerankError)}
    assert names <= set(triton_rerank.__all__)
