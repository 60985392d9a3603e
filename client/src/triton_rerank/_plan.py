"""Split a list of documents into sub-requests within the server's limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def plan(
    lengths: Sequence[int], *, overhead: int, max_batch_size: int, max_request_bytes: int
) -> tuple[tuple[int, ...], ...]:
    """Group documents of like length, since a sub-request is padded to its longest pair.

    Args:
        lengths: bytes of each document.
        overhead: bytes that each pair adds to its document's, the query's among them.
        max_batch_size: most pairs in a sub-request.
        max_request_bytes: most bytes in a sub-request; one larger pair goes alone.

    Returns:
        Document indexes of each sub-request, shortest documents first; together they hold each index once.
    """
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    size = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        pair = lengths[index] + overhead
        if group and (len(group) == max_batch_size or size + pair > max_request_bytes):
            groups.append(tuple(group))
            group, size = [], 0
        group.append(index)
        size += pair
    if group:
        groups.append(tuple(group))
    return tuple(groups)
