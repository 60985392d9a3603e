"""Candidates for the demo model's training queries, from BM25 and a bi-encoder, and a teacher's scores of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.data import FloatArray, Group

IntArray = npt.NDArray[np.int32]

# Candidates of a mined query, and how the teacher scores them.
BM25_TOP, COSINE_TOP, RANDOM_DOCUMENTS = 100, 30, 5
BM25_WEIGHT, COSINE_WEIGHT = 0.35, 0.65
TEACHER_FLOOR = -3.0  # far below the mean, how far says nothing
SOURCE_BONUS = 0.7  # for the document that the query was made from


class Candidates(NamedTuple):
    """Mined candidates: rows are queries, the source first; -1 pads ``indices`` and 0 pads ``scores``."""

    indices: IntArray  # (queries, width)
    scores: FloatArray  # (queries, width)


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
        """BM25 scores of all documents for one query."""
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
