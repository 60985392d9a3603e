"""Split a list of documents into sub-requests. Pure.

The server pads a sub-request to the first rung of the model's length ladder that holds its longest pair. Documents of
like length therefore travel together, as long as the padding that this saves is worth another request. What a
document has in tokens is estimated from its bytes: a wrong estimate costs padding, never correctness.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

BYTES_PER_TOKEN = 4.5  # English in the vocabularies of BERT and XLM-R; docs/results.md
REQUEST_COST_TOKENS = 1024  # padded tokens that one more request must save


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sub-request may hold.

    Attributes:
        max_batch_size: most pairs.
        max_request_bytes: most bytes; one larger pair goes alone.
        length_ladder: padded lengths in tokens, ascending; empty means that padding is not known.
    """

    max_batch_size: int
    max_request_bytes: int
    length_ladder: tuple[int, ...] = ()


def plan(lengths: Sequence[int], *, overhead: int, limits: Limits) -> tuple[tuple[int, ...], ...]:
    """Group documents into sub-requests.

    Args:
        lengths: bytes of each document.
        overhead: bytes that each pair adds to its document's, the query's among them.
        limits: of the server.

    Returns:
        Document indexes of each sub-request; together they hold each index once. One sub-request keeps the order of the
        documents, several go from the shortest to the longest.
    """
    n = len(lengths)
    if not n:
        return ()
    fits = n <= limits.max_batch_size and sum(lengths) + n * overhead <= limits.max_request_bytes
    if fits and _most_saved(lengths, overhead, limits.length_ladder) <= REQUEST_COST_TOKENS:
        return (tuple(range(n)),)
    order = sorted(range(n), key=lengths.__getitem__)
    sizes = [lengths[index] + overhead for index in order]
    groups: list[tuple[int, ...]] = []
    for start, end in _spans(sizes, limits.length_ladder):
        groups += [tuple(order[first:last]) for first, last in _pieces(sizes, start, end, limits)]
    return tuple(groups) if len(groups) > 1 else (tuple(range(n)),)


def _most_saved(lengths: Sequence[int], overhead: int, ladder: Sequence[int]) -> int:
    """Padded tokens that a split could save at the very most: all documents but one are as short as the shortest."""
    if not ladder:
        return 0
    sizes = (min(lengths) + overhead, max(lengths) + overhead)
    shortest, longest = (bisect_left(ladder, size / BYTES_PER_TOKEN, hi=len(ladder) - 1) for size in sizes)
    return len(lengths) * (ladder[longest] - ladder[shortest])


def _spans(sizes: Sequence[int], ladder: Sequence[int]) -> list[tuple[int, int]]:
    """The split of ascending sizes with the least padded tokens, a request counted as some tokens too."""
    ends = _rung_ends(sizes, ladder)  # [(end, rung)], ascending
    starts = [0, *(end for end, _ in ends)]
    best: list[tuple[int, int]] = [(0, 0)]  # of the first i ends: (cost, where the last span starts)
    for i, (end, rung) in enumerate(ends, 1):
        best.append(min((best[j][0] + (end - starts[j]) * rung + REQUEST_COST_TOKENS, j) for j in range(i)))
    spans: list[tuple[int, int]] = []
    i = len(ends)
    while i:
        j = best[i][1]
        spans.append((starts[j], starts[i]))
        i = j
    return spans[::-1]


def _rung_ends(sizes: Sequence[int], ladder: Sequence[int]) -> list[tuple[int, int]]:
    """Where ascending sizes pass from one rung to the next: (end, rung in tokens) for each rung that is used."""
    ends: list[tuple[int, int]] = []
    for rung in ladder[:-1]:
        end = bisect_right(sizes, rung * BYTES_PER_TOKEN)
        if end > (ends[-1][0] if ends else 0):
            ends.append((end, rung))
    last = ladder[-1] if ladder else 1  # what is longer still is cut to the last rung
    return ends if ends and ends[-1][0] == len(sizes) else [*ends, (len(sizes), last)]


def _pieces(sizes: Sequence[int], start: int, end: int, limits: Limits) -> list[tuple[int, int]]:
    """Cut a span where the server's limits want it, into pieces of like count."""
    n_pieces = -(-(end - start) // limits.max_batch_size)
    if n_pieces == 1 and sum(sizes[start:end]) <= limits.max_request_bytes:
        return [(start, end)]
    most = -(-(end - start) // n_pieces)
    pieces: list[tuple[int, int]] = []
    size = 0
    for i in range(start, end):
        if i > start and (i - start == most or size + sizes[i] > limits.max_request_bytes):
            pieces.append((start, i))
            start, size = i, 0
        size += sizes[i]
    return [*pieces, (start, end)]
