"""Training groups: a query with its positives and negatives, read from JSONL or mined from a corpus, and sampled.

A group's documents come positives first. A teacher's scores, where there are any, are on one scale within a group;
only their differences are used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

EXAMPLE_LINE = '{"query": "…", "positives": ["…"], "negatives": ["…"], "scores": [1.2, -0.3]}'

# Where the sampled negatives come from: (ranks by the teacher's score, share of the negatives).
STRATA = ((0, 8, 3), (8, 30, 2), (30, 80, 1), (80, 1 << 30, 1))

# Candidates of a mined query, and how the teacher scores them.
BM25_TOP, COSINE_TOP, RANDOM_DOCUMENTS = 100, 30, 5
BM25_WEIGHT, COSINE_WEIGHT = 0.35, 0.65
TEACHER_FLOOR = -3.0  # far below the mean, how far says nothing
SOURCE_BONUS = 0.7  # for the document that the query was made from


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


class Candidates(NamedTuple):
    """Mined candidates: rows are queries, the source first; -1 pads ``indices`` and 0 pads ``scores``."""

    indices: IntArray  # (queries, width)
    scores: FloatArray  # (queries, width)


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
    queries = sorted({group.query for group in groups}, key=lambda query: _digest(query, seed))
    if fraction == 0:
        return list(groups), []
    if len(queries) < 2:
        raise ExportError(f"cannot hold out from {len(queries)} query; give more queries, or hold out nothing (0)")
    held = set(queries[: max(1, min(limit, int(len(queries) * fraction)))])
    return [g for g in groups if g.query not in held], [g for g in groups if g.query in held]


def _digest(query: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{query}".encode()).digest()


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


def mine(
    queries: Sequence[str],
    sources: Sequence[int],
    documents: Sequence[str],
    vectors: tuple[FloatArray, FloatArray],
    *,
    seed: int,
    advance: Callable[[int], None] = lambda _n: None,
) -> Candidates:
    """Find candidates for queries that each have one known source, and score them as a teacher.

    Candidates are the source, BM25's best 100, the bi-encoder's best 30 and 5 random documents; the score is
    0.35 z(BM25) + 0.65 z(cosine) over the candidates, at least -3, plus 0.7 for the source.

    Args:
        queries: n texts.
        sources: n positions in ``documents``.
        documents: m texts.
        vectors: unit vectors of the queries (n, d) and of the documents (m, d), float32.
        seed: for the random documents.
        advance: called with the number of queries done since the last call.

    Raises:
        ExportError: bm25s or PyStemmer is not installed.
    """
    bm25_scores = _bm25(documents, queries)
    indices = np.full((len(queries), 1 + BM25_TOP + COSINE_TOP + RANDOM_DOCUMENTS), -1, np.int32)
    scores = np.zeros(indices.shape, np.float32)
    rng = np.random.default_rng(seed)
    for row, source in enumerate(sources):
        bm25 = bm25_scores(row)  # (m,)
        cosine: FloatArray = vectors[1] @ vectors[0][row]  # (m,)
        chosen = _candidates(source, bm25, cosine, rng)
        indices[row, : len(chosen)] = chosen
        scores[row, : len(chosen)] = _teacher_scores(bm25[chosen], cosine[chosen])
        advance(1)
    return Candidates(indices, scores)


def groups_of(queries: Sequence[str], documents: Sequence[str], candidates: Candidates) -> list[Group]:
    """Turn mined candidates into groups whose one positive is the source; texts are shared, not copied."""
    groups = []
    for query, indices, scores in zip(queries, candidates.indices, candidates.scores, strict=True):
        real = indices >= 0
        texts = tuple(documents[int(i)] for i in indices[real])
        groups.append(Group(query, texts, 1, tuple(float(s) for s in scores[real])))
    return groups


def _bm25(documents: Sequence[str], queries: Sequence[str]) -> Callable[[int], FloatArray]:
    """Index the documents; the function returned gives one query's scores, (m,)."""
    try:
        import bm25s
        import Stemmer
    except ModuleNotFoundError as error:
        raise ExportError(f"{error.name} is not installed; run: pip install bm25s PyStemmer") from error
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(bm25s.tokenize(list(documents), stemmer=stemmer, show_progress=False), show_progress=False)
    words = bm25s.tokenize(list(queries), stemmer=stemmer, show_progress=False, return_ids=False)

    def scores(row: int) -> FloatArray:
        if not words[row]:  # stop words only
            return np.zeros(len(documents), np.float32)
        found: FloatArray = index.get_scores(words[row])
        return found

    return scores


def _candidates(source: int, bm25: FloatArray, cosine: FloatArray, rng: np.random.Generator) -> list[int]:
    drawn = rng.integers(len(bm25), size=RANDOM_DOCUMENTS)
    others = np.concatenate([_best(bm25, BM25_TOP), _best(cosine, COSINE_TOP), drawn])
    return [source, *(int(i) for i in np.unique(others) if i != source)]


def _best(scores: FloatArray, n: int) -> npt.NDArray[np.intp]:
    if n >= len(scores):
        return np.arange(len(scores))
    return np.argpartition(-scores, n)[:n]


def _teacher_scores(bm25: FloatArray, cosine: FloatArray) -> FloatArray:
    """Score candidates whose first is the source; both arguments (c,), float32."""
    mixed = np.maximum(BM25_WEIGHT * _z(bm25) + COSINE_WEIGHT * _z(cosine), TEACHER_FLOOR)
    mixed[0] += SOURCE_BONUS
    return mixed.astype(np.float32)


def _z(values: FloatArray) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    z: npt.NDArray[np.float64] = (wide - wide.mean()) / (wide.std() + 1e-6)
    return z
