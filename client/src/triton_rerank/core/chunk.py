"""Cuts a long text into overlapping chunks at the ends of sentences or words. Pure."""

from __future__ import annotations

import re

Span = tuple[int, int]  # start and end, in characters

# A full stop or the like with what closes it and the space after it, or an empty line; some scripts have no space.
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]+|\n\s*\n")
_WORD = re.compile(r"\s+")


def spans(text: str, *, size: int, overlap: int) -> tuple[Span, ...]:
    """Where the chunks of a text are.

    Together they hold every character, none is longer than ``size``, and each begins after the one before it. A chunk
    ends with a sentence if one ends in its second half, else with a word, else where it is full; the next one begins
    with a word within the overlap, if one begins there.

    Args:
        text: any.
        size: most characters of a chunk, at least 1.
        overlap: characters that a chunk has in common with the one before it, as many as the borders allow; at most
            half of ``size`` counts.

    Returns:
        At least one; the whole text if that fits.
    """
    overlap = min(overlap, size // 2)
    found: list[Span] = []
    start = 0
    while True:
        end = _end(text, start, size)
        found.append((start, end))
        if end == len(text):
            return tuple(found)
        start = _start(text, max(start + 1, end - overlap), end)


def _end(text: str, start: int, size: int) -> int:
    """Where a chunk that begins here ends: after the last border in its second half, if there is one."""
    full = start + size
    if full >= len(text):
        return len(text)
    for border in (_SENTENCE, _WORD):
        ends = [match.end() for match in border.finditer(text, start + size // 2, full + 1) if match.end() <= full]
        if ends:
            return ends[-1]
    return full


def _start(text: str, earliest: int, end: int) -> int:
    """Where the next chunk begins: with the first word from here on, or right here if none begins before the end."""
    if text[earliest - 1].isspace():
        return earliest
    match = _WORD.search(text, earliest, end)
    return match.end() if match else earliest
