"""A process of its own that sends one huge document after the other: what a caller beside it must not feel.

``python -m support.flood TARGET MODEL UNIT``: a line for each answer, until it is ended.
"""

from __future__ import annotations

import sys

from support.raw import infer_raw

HUGE = 16 * 1024 * 1024  # bytes


def huge(unit: str) -> bytes:
    """A document of at most `HUGE` bytes, of one text over and over."""
    return unit.encode() * (HUGE // len(unit.encode()))


def main(target: str, model: str, unit: str) -> None:
    """Send for ever."""
    document = huge(unit)
    while True:
        answer = infer_raw(target, model, {"query": ["heap"], "document": [document]}, ["truncated"])
        print(bool(answer["truncated"][0, 0]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
