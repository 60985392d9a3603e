"""Texts become unit vectors: by any function, sentence-transformers, or an endpoint in OpenAI's form; kept on disk."""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank import ConfigurationError, InferenceError, InvalidResponseError, RerankError
from triton_rerank_retrieval.files import digest_of, file_digest

KEPT_QUERIES = 1024  # vectors of queries in memory
Vectors = npt.NDArray[np.float32]
Embed = Callable[[list[str]], Any]


class Embedder:
    """A function that embeds texts, with a name that stands for its model. Safe to share if the function is.

    Args:
        embed: texts -> vectors ``(n, dimensions)``, of any length.
        model: names the model; embeddings and indexes of one model are not used for another.
        embed_query: for queries, where the model treats them otherwise; None means as documents. Vectors of the last
            thousand queries stay in memory.
        cache: a SQLite file for the embeddings of documents, by content: a text is embedded once, and indexing that was
            cut goes on where it stopped. None keeps nothing.
        batch_size: texts a call.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        model: str,
        embed_query: Embed | None = None,
        cache: str | Path | None = None,
        batch_size: int = 64,
    ) -> None:
        if not model or batch_size < 1:
            raise ConfigurationError(
                f"model is {model[:80]!r} and batch_size {batch_size}: give a name, and at least 1"
            )
        self.model = model
        self.batch_size = batch_size
        self._embed = embed
        self._embed_query = embed_query or embed
        # A search and the scores of what others found ask for the same query, an evaluation again and again.
        self._vector = functools.lru_cache(maxsize=KEPT_QUERIES)(self._query_vector)
        self._cache = None if cache is None else _Cache(Path(cache), model)

    def query(self, text: str) -> Vectors:
        """Unit vector of a query, float32 ``(dimensions,)``.

        Raises:
            InvalidResponseError: no finite vector came back.
            InferenceError: the function failed.
        """
        vector: Vectors = self._vector(text)
        return vector

    def _query_vector(self, text: str) -> Vectors:
        vector: Vectors = _unit(_call(self._embed_query, [text], self.model), 1, self.model)[0]
        vector.flags.writeable = False
        return vector

    def documents(self, texts: Sequence[str]) -> Iterator[Vectors]:
        """Unit vectors of documents, a batch at a time, float32 ``(batch, dimensions)``; errors as for `query`."""
        for begin in range(0, len(texts), self.batch_size):
            batch = list(texts[begin : begin + self.batch_size])
            known = self._cache.find(batch) if self._cache else {}
            missing = [text for text in dict.fromkeys(batch) if text not in known]
            if missing:
                vectors = _unit(_call(self._embed, missing, self.model), len(missing), self.model)
                new = dict(zip(missing, vectors, strict=True))
                if self._cache:
                    self._cache.keep(new)
                known.update(new)
            yield _stacked([known[text] for text in batch], self.model)


def sentence_transformer(
    model: Any, *, name: str | None = None, cache: str | Path | None = None, batch_size: int = 32
) -> Embedder:
    """An embedder of a sentence-transformers model on the CPU, at its own settings.

    Args:
        model: a folder, an id, or a ``SentenceTransformer``; its prompts for queries and documents apply.
        name: stands for the weights; None takes the id, or the folder's name with a digest of its weights.
        cache: as for `Embedder`.
        batch_size: texts a call.

    Raises:
        ConfigurationError: sentence-transformers is missing, or cannot load the model.
    """
    loaded, known_as = _load_sentence_transformer(model, name)

    def embed(texts: list[str]) -> Any:
        """Vectors of documents."""
        return loaded.encode_document(texts, batch_size=batch_size, show_progress_bar=False)

    def embed_query(texts: list[str]) -> Any:
        """Vectors of queries, with the model's own prompt for them."""
        return loaded.encode_query(texts, show_progress_bar=False)

    return Embedder(embed, model=known_as, embed_query=embed_query, cache=cache, batch_size=batch_size)


class _Cache:
    """Digest of a text -> its vector, in one SQLite file, which no interrupt leaves half-written."""

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
        except (OSError, sqlite3.Error) as exc:
            raise ConfigurationError(f"{path} is no cache of embeddings ({exc}): remove it, or give another") from exc

    def find(self, texts: Sequence[str]) -> dict[str, Vectors]:
        """The vectors that are here."""
        keys = {digest_of(self._model, text): text for text in texts}
        marks = ",".join("?" * len(keys))
        with closing(self._open()) as file:
            rows = file.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", list(keys))  # noqa: S608 - marks
            return {keys[key]: np.frombuffer(vector, np.float32) for key, vector in rows}

    def keep(self, vectors: dict[str, Vectors]) -> None:
        """Keep vectors, all or none."""
        rows = [(digest_of(self._model, text), vector.tobytes()) for text, vector in vectors.items()]
        with closing(self._open()) as file, file:
            file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60.0)  # another process may be writing


def _call(embed: Embed, texts: list[str], model: str) -> Any:
    try:
        return embed(texts)
    except RerankError:
        raise
    except Exception as exc:
        raise InferenceError(f"{model} could not embed {len(texts)} texts: {type(exc).__name__}: {exc}") from exc


def _unit(vectors: Any, n: int, model: str) -> Vectors:
    """Checked, of length 1; a vector of zeros stays one."""
    array = np.asarray(vectors, np.float32)
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] == 0:
        raise InvalidResponseError(f"{model} gave vectors of the shape {array.shape} for {n} texts: ({n}, dimensions)")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InvalidResponseError(f"{model} gave a vector that is not finite for text {row} of {n}")
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(array / np.where(lengths > 0, lengths, 1.0), np.float32)


def _stacked(vectors: Sequence[Vectors], model: str) -> Vectors:
    sizes = {vector.size for vector in vectors}
    if len(sizes) > 1:
        raise ConfigurationError(
            f"{model} has vectors of the dimensions {sorted(sizes)} in its cache: two models share this name; name "
            "them apart in model=, or remove the cache"
        )
    return np.stack(vectors)


def _load_sentence_transformer(model: Any, name: str | None) -> tuple[Any, str]:
    try:
        from sentence_transformers import SentenceTransformer  # seconds to import
    except ImportError as exc:
        raise ConfigurationError("this needs pip install 'triton-rerank-retrieval[dense]'") from exc
    if isinstance(model, SentenceTransformer):
        if name is None:
            raise ConfigurationError("a model that is loaded already needs name=, which stands for its weights")
        return model, name
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local folder: nothing is asked of the hub
    try:
        return SentenceTransformer(str(model), device="cpu"), name or _identity(str(model))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{str(model)[:80]} is no sentence-transformers model here: {exc}") from exc


def _identity(model: str) -> str:
    """A folder is named by its weights too, since they may change under one path."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    weights = sorted(file for file in folder.rglob("*") if file.suffix in (".safetensors", ".bin"))
    return f"{folder.resolve().name}-{digest_of(*map(file_digest, weights))[:12]}"
