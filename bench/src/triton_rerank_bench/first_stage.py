"""BM25: finds the candidates that every other system reorders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer

K1 = 1.2
B = 0.75
METHOD = "lucene"  # Lucene's idf, which is never negative
STOP_WORDS = "en"  # Lucene's short list; bm25s' "en_plus" list gives other figures


@dataclass(frozen=True)
class Candidates:
    """What BM25 found for q queries, best first.

    Attributes:
        indexes: int64 ``(q, k)``, places in the collection.
        scores: float64 ``(q, k)``, falling along each row.
    """

    indexes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


class Bm25:
    """An index over a collection's documents.

    Args:
        documents: at least one.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        self._n_documents = len(documents)
        self._index = bm25s.BM25(k1=K1, b=B, method=METHOD)
        self._index.index(self._tokenize(documents), show_progress=False)

    def search(self, queries: Iterable[str], *, top_k: int) -> Candidates:
        """Find the best documents of each query; equal scores keep the collection's order.

        Args:
            queries: q texts. A query without a known word scores 0 everywhere.
            top_k: documents a query; more than there are means all.
        """
        scores = np.stack([self._scores(tokens) for tokens in self._tokenize(list(queries))])  # (q, documents)
        # bm25s' own top-k breaks ties as its heap falls, so the same data could give other figures elsewhere.
        indexes = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].astype(np.int64)
        return Candidates(indexes, np.take_along_axis(scores, indexes, axis=1))

    def _tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=STOP_WORDS, stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return tokens

    def _scores(self, tokens: list[str]) -> npt.NDArray[np.float64]:
        known = [token for token in tokens if token in self._index.vocab_dict]
        if not known:  # bm25s cannot score an empty query
            return np.zeros(self._n_documents)
        return np.asarray(self._index.get_scores(known), dtype=np.float64)
