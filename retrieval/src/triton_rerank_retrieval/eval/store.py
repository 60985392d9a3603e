"""What was computed already, in one SQLite file: lists of first stages, scores of pairs. A cut run goes on from it."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from triton_rerank import ConfigurationError, Scorer
from triton_rerank.extending import Call, PairRequest, Scored
from triton_rerank_retrieval.candidates import (
    Candidate,
    Feedback,
    FeedbackRetriever,
    Filter,
    Retriever,
    ScoringRetriever,
)
from triton_rerank_retrieval.corpus import Corpus
from triton_rerank_retrieval.files import digest_of

Pair = tuple[float | None, float, bool]  # logit, score, truncated


class Store:
    """One file; safe between threads.

    Args:
        path: made if it is not there.

    Raises:
        ConfigurationError: it is something else.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, check_same_thread=False, timeout=60.0)
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as exc:
            raise ConfigurationError(f"{path} cannot be used ({exc}): remove it, or give another folder") from exc

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values that are here."""
        found = {}
        with self._lock:
            for key in keys:
                row = self._file.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
                if row:
                    found[key] = json.loads(row[0])
        return found

    def put(self, values: dict[str, Any]) -> None:
        """Keep values, all or none."""
        with self._lock, self._file:
            rows = [(key, json.dumps(value)) for key, value in values.items()]
            self._file.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", rows)


class KeptRetriever:
    """A first stage whose lists are looked up first.

    Args:
        retriever: asked for what is not here.
        identity: names it with all that changes its lists: model, options, corpus.
        corpus: that it searches.
        store: where lists are kept.
        depth: candidates a query; a search may ask for less.
    """

    def __init__(self, retriever: Retriever, identity: str, corpus: Corpus, store: Store, depth: int) -> None:
        self.name = retriever.name
        self._retriever = retriever
        self._identity = identity
        self._rows = {id: row for row, id in enumerate(corpus.ids)}
        self._corpus = corpus
        self._store = store
        self._depth = depth

    def search(self, query: str, k: int, filter: Filter | None = None) -> list[Candidate[Any]]:
        """See `Retriever.search`; a filter is not looked up."""
        if filter is not None or k > self._depth:
            return self._retriever.search(query, k, filter)
        key = digest_of("list", self._identity, str(self._depth), query)
        kept = self._store.get([key]).get(key)
        if kept is None:
            kept = [(one.id, one.score) for one in self._retriever.search(query, self._depth)]
            self._store.put({key: kept})
        return [self._corpus.candidate(self._rows[id], score) for id, score in kept[:k]]


class KeptScoringRetriever(KeptRetriever):
    """A kept first stage whose scores of others' documents are looked up too."""

    def scores_of(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """See `ScoringRetriever.scores_of`."""
        key = digest_of("scores", self._identity, query, *ids)
        kept = self._store.get([key]).get(key)
        if kept is None:
            kept = dict(self._scoring.scores_of(query, ids))
            self._store.put({key: kept})
        return dict(kept)

    @property
    def _scoring(self) -> ScoringRetriever:
        assert isinstance(self._retriever, ScoringRetriever)
        return self._retriever


class KeptFeedbackRetriever(KeptScoringRetriever):
    """A kept first stage that can be given more words; what it finds by them is not kept."""

    def widened(self, query: str, best: Sequence[Candidate[Any]], feedback: Feedback) -> ScoringRetriever:
        """See `FeedbackRetriever.widened`."""
        assert isinstance(self._retriever, FeedbackRetriever)
        return self._retriever.widened(query, best, feedback)


class KeptScorer:
    """A scorer whose pairs are looked up first, and are never scored twice for the same model.

    Args:
        open_scorer: gives who is asked for what is not here; not called while nothing is missing.
        name: what results call it.
        identity: names the model with all that changes its scores.
        store: where scores are kept.
    """

    def __init__(self, open_scorer: Callable[[], Scorer], name: str, identity: str, store: Store) -> None:
        self.name = name
        self._open_scorer = open_scorer
        self._identity = identity
        self._store = store

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Look the pairs up, and ask for those that are missing."""
        keys = [self._key(request, document) for document in request.documents]
        kept: dict[str, Pair] = self._store.get(keys)
        missing = [row for row, key in enumerate(keys) if key not in kept]
        if missing:
            asked = replace(request, documents=tuple(request.documents[row] for row in missing))
            answer = await self._open_scorer().score(asked, call)
            new = dict(zip((keys[row] for row in missing), _pairs(answer), strict=True))
            self._store.put(new)
            kept.update(new)
        logits, scores, truncated = zip(*(kept[key] for key in keys), strict=True)
        return Scored(
            model=self.name,
            served_by=self.name,
            logits=None if None in logits else np.array(logits, np.float32),
            scores=np.array(scores, np.float64),
            truncated=np.array(truncated, np.bool_),
            token_count=0,
            requests=0,
            cached_pairs=len(keys) - len(missing),
        )

    async def is_ready(self, call: Call) -> bool:
        """True if the scorer is."""
        return await self._open_scorer().is_ready(call)

    def close(self) -> None:
        """The scorer is closed by who made it."""

    async def aclose(self) -> None:
        """See `close`."""

    def _key(self, request: PairRequest, document: bytes) -> str:
        return digest_of("pair", self._identity, request.query.decode(), document.decode())


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store of a folder of work."""
    store = Store(folder / "computed.sqlite")
    try:
        yield store
    finally:
        store.close()


def _pairs(answer: Scored) -> Iterator[Pair]:
    if answer.scores is None or answer.degraded or answer.tiers is not None:
        raise ConfigurationError(f"{answer.served_by} did not score ({answer.reason}): it cannot be measured")
    logits = [None] * answer.truncated.size if answer.logits is None else answer.logits.tolist()
    return zip(logits, answer.scores.tolist(), answer.truncated.tolist(), strict=True)
