"""Training groups: a query with its positives and negatives, read from JSONL, and sampled.

A group's documents come positives first. A teacher's scores, where there are any, are on one scale within a group;
only their differences are used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError

FloatArray = npt.NDArray[np.float32]

EXAMPLE_LINE = '{"query": "…", "positives": ["…"], "negatives": ["…"], "scores": [1.2, -0.3]}'

# Where the sampled negatives come from: (ranks by the teacher's score, share of the negatives).
STRATA = ((0, 8, 3), (8, 30, 2), (30, 80, 1), (80, 1 << 30, 1))


@dataclass(frozen=True)
class Group:
    """One query with its documents, positives first; ``scores`` is the teacher's, parallel to ``documents``."""

    query: str
    documents: tuple[str, ...]
    n_positives: int
    scores: tuple[float, ...] | None = None


class Sample(NamedTuple):
    """What one training step sees of a group: a positive first, then negatives; scores parallel or None."""

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...] | None


def read_groups(path: Path) -> list[Group]:
    """Read training groups from a JSONL file; blank lines and unknown fields are skipped.

    Raises:
        ExportError: the file is missing or empty, or a line is wrong: file, line, what is wrong and what to do.
    """
    if not path.is_file():
        raise ExportError(f"no training data at {path}; give a file with lines such as {EXAMPLE_LINE}")
    groups = list(_parsed_lines(path))
    if not groups:
        raise ExportError(f"{path} holds no training group; give lines such as {EXAMPLE_LINE}")
    return groups


def _parsed_lines(path: Path) -> Iterator[Group]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield _parsed(line)
                except (ValueError, OverflowError) as error:  # JSON and UTF-8 errors are ValueErrors too
                    raise ExportError(f"{path}:{number}: {error}; a line looks like {EXAMPLE_LINE}") from error


def _parsed(line: bytes) -> Group:
    row = json.loads(line.decode("utf-8"))
    if not isinstance(row, dict):
        raise ValueError(f"the line is a JSON {type(row).__name__}, not an object")
    query = _text(row.get("query"), "'query'")
    positives, negatives = _texts(row, "positives"), _texts(row, "negatives")
    if both := set(positives) & set(negatives):
        raise ValueError(f"one document is both positive and negative ({min(both)[:60]!r}): remove it from one list")
    return Group(query, positives + negatives, len(positives), _scores(row, len(positives) + len(negatives)))


def _texts(row: dict[str, Any], field: str) -> tuple[str, ...]:
    values = row.get(field)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{field!r} must be a list of at least one text")
    return tuple(_text(value, f"{field!r}[{position}]") for position, value in enumerate(values))


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} must be a text that is not empty")
    value.encode("utf-8")  # JSON can spell half a surrogate pair, which no tokenizer takes
    return value


def _scores(row: dict[str, Any], n_documents: int) -> tuple[float, ...] | None:
    values = row.get("scores")
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != n_documents:
        found = len(values) if isinstance(values, list) else type(values).__name__
        raise ValueError(f"'scores' must be a list of {n_documents} numbers, positives first, found {found}")
    for position, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"'scores'[{position}] must be a finite number, found {value!r}")
    return tuple(float(value) for value in values)


def split(groups: Sequence[Group], *, fraction: float, limit: int, seed: int) -> tuple[list[Group], list[Group]]:
    """Split into (training, held out) by query, in the given order, the same way every time.

    A query stands on one side only, however many groups it has, and stays there when other groups come or go.

    Args:
        groups: all groups.
        fraction: share of the queries to hold out, 0 to 1; 0 holds out none.
        limit: most queries to hold out.
        seed: another seed gives another split.

    Raises:
        ExportError: groups would be held out, but one query is all there is.
    """
    queries = sorted({group.query for group in groups}, key=lambda query: sha256(f"{seed}:{query}".encode()).digest())
    if fraction == 0:
        return list(groups), []
    if len(queries) < 2:
        raise ExportError(f"cannot hold out from {len(queries)} query; give more queries, or hold out nothing (0)")
    held = set(queries[: max(1, min(limit, int(len(queries) * fraction)))])
    return [g for g in groups if g.query not in held], [g for g in groups if g.query in held]


def training_order(n_groups: int, *, epoch: int, seed: int) -> list[int]:
    """Return the order of the groups in an epoch (0, 1, …): a permutation that depends on the arguments only."""
    return [int(i) for i in np.random.default_rng((seed, epoch)).permutation(n_groups)]


def sample(group: Group, *, size: int, rng: np.random.Generator) -> Sample:
    """Draw one positive and up to ``size - 1`` negatives.

    With a teacher, most negatives are hard: of each seven, 3 come from the teacher's best 8, 2 from ranks 9 to 30,
    1 from 31 to 80 and 1 from the tail. Without one, they are drawn evenly.
    """
    positive = int(rng.integers(group.n_positives))
    negatives = [int(i) for i in rng.permutation(np.arange(group.n_positives, len(group.documents)))]
    if group.scores is not None:
        negatives = _by_strata(negatives, group.scores, size - 1)
    chosen = [positive, *negatives[: size - 1]]
    scores = None if group.scores is None else tuple(group.scores[i] for i in chosen)
    return Sample(group.query, tuple(group.documents[i] for i in chosen), scores)


def _by_strata(shuffled: list[int], scores: Sequence[float], n: int) -> list[int]:
    rank = {i: r for r, i in enumerate(sorted(shuffled, key=lambda i: (-scores[i], i)))}
    parts = sum(share for _, _, share in STRATA)
    chosen: list[int] = []
    for first, end, share in STRATA:
        chosen += [i for i in shuffled if first <= rank[i] < end][: math.floor(n * share / parts)]
    taken = set(chosen)
    return chosen + [i for i in shuffled if i not in taken]  # fills up where a stratum is short
