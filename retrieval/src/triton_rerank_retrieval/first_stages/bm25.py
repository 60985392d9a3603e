"""BM25 by bm25s, with Lucene's formula. Needs ``pip install 'triton-rerank-retrieval[bm25]'``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank import ConfigurationError
from triton_rerank_retrieval.candidates import Candidate, Feedback, Filter, ScoringRetriever
from triton_rerank_retrieval.corpus import Corpus, Key, best_rows, check_search, load_corpus
from triton_rerank_retrieval.files import IndexFileError, new_folder, read_manifest

try:
    import bm25s
    import Stemmer
except ImportError as exc:
    raise ConfigurationError("Bm25 needs bm25s: pip install 'triton-rerank-retrieval[bm25]'") from exc

KIND = "bm25"
METHOD = "lucene"  # an idf that is never negative
BATCH = 1024
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Bm25Options:
    """How texts become words, and words scores.

    Attributes:
        k1: how soon repetitions of a word stop counting.
        b: how much long documents are held back, 0 … 1.
        stop_words: a language that bm25s knows, such as "en"; "" for none.
        stemmer: a language that Snowball knows, such as "english"; "" for none.
    """

    k1: float = 1.2
    b: float = 0.75
    stop_words: str = "en"  # Lucene's short list; bm25s' "en_plus" list gives other figures
    stemmer: str = "english"


class Bm25:
    """A lexical first stage, in memory. Safe to share between threads.

    A document that shares no word with the query is not found, so that a list may be shorter than ``k``. Equal scores
    keep the corpus' order (bm25s' own selection breaks ties as its heap falls).

    Args:
        corpus: the documents.
        index: bm25s' index of their texts; `build` makes it.
        options: as it was built.
        name: what results call it.
    """

    def __init__(self, corpus: Corpus, index: Any, options: Bm25Options, *, name: str = "bm25") -> None:
        self.corpus = corpus
        self.name = name
        self._index = index
        self._options = options

    @classmethod
    def build(
        cls,
        documents: Iterable[Any] | Corpus,
        *,
        text_key: Key = "text",
        id_key: Key = "id",
        options: Bm25Options | None = None,
        on_progress: Progress = lambda done, total: None,
        name: str = "bm25",
    ) -> Bm25:
        """Index documents.

        Args:
            documents: as for `Corpus.of`; so are the keys. None at all give an index that finds nothing.
            text_key: where the text is.
            id_key: where the id is.
            options: None for the defaults.
            on_progress: called with documents done and in all.
            name: what results call it.

        Raises:
            InvalidRequestError: a document without text, or ids that stand twice.
        """
        corpus = documents if isinstance(documents, Corpus) else Corpus.of(documents, text_key=text_key, id_key=id_key)
        options = options or Bm25Options()
        tokens: list[list[str]] = []
        for begin in range(0, len(corpus), BATCH):
            tokens += _words(corpus.texts[begin : begin + BATCH], options)
            on_progress(len(tokens), len(corpus))
        index = bm25s.BM25(k1=options.k1, b=options.b, method=METHOD)
        if any(tokens):
            index.index(tokens, show_progress=False)
        return cls(corpus, index if any(tokens) else None, options, name=name)

    def save(self, folder: str | Path) -> None:
        """Write the index and its documents; an old index there is replaced when the new one is whole.

        Raises:
            ConfigurationError: it cannot be written, or a document is nothing that JSON can hold.
        """
        facts = {"kind": KIND, "documents": len(self.corpus), "options": asdict(self._options)}
        with new_folder(Path(folder), {**facts, "empty": self._index is None}) as staged:
            self.corpus.save(staged)
            if self._index is not None:
                self._index.save(str(staged), show_progress=False)

    @classmethod
    def load(cls, folder: str | Path, *, name: str = "bm25") -> Bm25:
        """Read what `save` wrote.

        Raises:
            IndexFileError: there is none, or it is broken.
        """
        manifest = read_manifest(Path(folder), KIND)
        try:
            options = Bm25Options(**manifest["options"])
            index = None if manifest["empty"] else bm25s.BM25.load(str(folder), load_corpus=False)
        except (TypeError, KeyError, ValueError, OSError) as exc:
            raise IndexFileError(f"{folder} cannot be read ({exc}): build the index anew, and save it there") from exc
        return cls(load_corpus(Path(folder)), index, options, name=name)

    def search(self, query: str, k: int, filter: Filter | None = None) -> list[Candidate[Any]]:
        """See `Retriever.search`."""
        check_search(query, k)
        scores = self.scores(query)
        found = (scores > 0) & self.corpus.allowed(filter)
        rows = np.flatnonzero(found)
        return [self.corpus.candidate(row, float(scores[row])) for row in rows[best_rows(scores[rows], k)].tolist()]

    def scores_of(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """See `ScoringRetriever.scores_of`."""
        scores = self.scores(query)
        return {id: float(scores[row]) for id, row in self.corpus.rows(ids).items()}

    def widened(self, query: str, best: Sequence[Candidate[Any]], feedback: Feedback) -> ScoringRetriever:
        """See `FeedbackRetriever.widened`. Words of a document that is not in the index weigh as in those that are."""
        return _Widened(self, self._weighted(query, best, feedback))

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """The score of every document, float64 ``(n,)``."""
        (known,) = self._known(query)
        if not known:  # bm25s cannot score an empty query
            return np.zeros(len(self.corpus))
        return np.asarray(self._index.get_scores(known), np.float64)

    def _known(self, *texts: str) -> list[list[str]]:
        """Of each text the words that a document has."""
        vocabulary = {} if self._index is None else self._index.vocab_dict
        return [[word for word in words if word in vocabulary] for words in _words(texts, self._options)]

    def _weighted(self, query: str, best: Sequence[Candidate[Any]], feedback: Feedback) -> dict[str, float]:
        """The query's words and the documents' heaviest ones -> weight; as many in all as the query has words."""
        own = Counter(*self._known(query))
        theirs: dict[str, float] = defaultdict(float)
        places = self.corpus.rows([one.id for one in best])
        rows = [places.get(one.id) for one in best]
        texts = [one.text if row is None else self.corpus.texts[row] for one, row in zip(best, rows, strict=True)]
        for row, words in zip(rows, self._known(*texts), strict=True):
            for word in dict.fromkeys(words):
                theirs[word] += self._weight(word, row)
        added = sorted(theirs.items(), key=lambda pair: -pair[1])[: feedback.words]  # equal ones as they stand
        share = feedback.weight * max(own.total(), 1) / (sum(weight for _, weight in added) or 1.0)
        weights = defaultdict(float, {word: (1 - feedback.weight) * n for word, n in own.items()})
        for word, weight in added:
            weights[word] += share * weight
        return weights

    def _weight(self, word: str, row: int | None) -> float:
        rows, weights = self._column(word)
        if row is None:
            return float(weights.mean())
        place = int(np.searchsorted(rows, row))
        return float(weights[place])

    def _column(self, word: str) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.float32]]:
        """The documents that have the word, rising, and its weight in each."""
        matrix, token = self._index.scores, self._index.vocab_dict[word]
        own = slice(*matrix["indptr"][token : token + 2])
        return matrix["indices"][own], matrix["data"][own]


class _Widened(Bm25):
    """For one query, whose words have weights."""

    def __init__(self, plain: Bm25, weights: Mapping[str, float]) -> None:
        super().__init__(plain.corpus, plain._index, plain._options, name=plain.name)
        self._weights = weights

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """Of the query that it was made for, whatever is asked."""
        scores = np.zeros(len(self.corpus))
        for word, weight in self._weights.items():
            rows, weights = self._column(word)
            scores[rows] += weight * weights
        return scores


def _words(texts: Sequence[str], options: Bm25Options) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        list(texts),
        stopwords=options.stop_words or None,
        stemmer=Stemmer.Stemmer(options.stemmer) if options.stemmer else None,
        return_ids=False,
        show_progress=False,
    )
    return words
