"""Dense retrieval by FAISS, exact or HNSW. Needs ``pip install 'triton-rerank-retrieval[faiss]'``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from triton_rerank import ConfigurationError, InvalidResponseError
from triton_rerank_retrieval.candidates import Candidate, Filter
from triton_rerank_retrieval.corpus import Corpus, Key, check_search, load_corpus
from triton_rerank_retrieval.files import IndexFileError, new_folder, read_manifest
from triton_rerank_retrieval.first_stages.embedder import Embedder

try:
    faiss: Any = importlib.import_module("faiss")  # its stubs lack half of it
except ImportError as exc:
    raise ConfigurationError("Dense needs FAISS: pip install 'triton-rerank-retrieval[faiss]'") from exc

KIND = "dense"
FILE = "vectors.faiss"
NEIGHBOURS, BUILD_DEPTH, SEARCH_DEPTH = 32, 200, 128  # of HNSW: links a vector, and how widely it looks
Kind = Literal["flat", "hnsw"]
Progress = Callable[[int, int], None]


class Dense:
    """A first stage by cosine of embeddings. Safe to share between threads if the embedder is.

    "flat" compares with every vector and is exact; "hnsw" is approximate, faster from some 100,000 documents up, and
    takes twice the memory. An index holds ``4 × dimensions`` bytes a document; embeddings pass through in batches.

    Args:
        corpus: the documents.
        index: FAISS' index of their unit vectors; `build` makes it.
        embedder: of the model that made them.
        kind: as it was built.
        name: what results call it.
    """

    def __init__(self, corpus: Corpus, index: Any, embedder: Embedder, kind: Kind, *, name: str = "dense") -> None:
        self.corpus = corpus
        self.embedder = embedder
        self.name = name
        self._index = index
        self._kind: Kind = kind

    @classmethod
    def build(
        cls,
        documents: Iterable[Any] | Corpus,
        embedder: Embedder,
        *,
        kind: Kind = "flat",
        text_key: Key = "text",
        id_key: Key = "id",
        on_progress: Progress = lambda done, total: None,
        name: str = "dense",
    ) -> Dense:
        """Embed and index documents. With a cache in the embedder, what was cut goes on where it stopped.

        Args:
            documents: as for `Corpus.of`; so are the keys.
            embedder: embeds them, and the queries later.
            kind: "flat" or "hnsw".
            text_key: where the text is.
            id_key: where the id is.
            on_progress: called with documents done and in all.
            name: what results call it.

        Raises:
            InvalidRequestError: a document without text, or ids that stand twice.
            InvalidResponseError: a vector that is not finite.
        """
        if kind not in ("flat", "hnsw"):
            raise ConfigurationError(f"kind is {str(kind)[:80]!r}: it must be flat or hnsw")
        corpus = documents if isinstance(documents, Corpus) else Corpus.of(documents, text_key=text_key, id_key=id_key)
        index = None
        for vectors in embedder.documents(corpus.texts):
            if index is None:
                index = _empty_index(kind, vectors.shape[1])
            if vectors.shape[1] != index.d:
                raise InvalidResponseError(f"{embedder.model} changed from {index.d} to {vectors.shape[1]} dimensions")
            index.add(vectors)
            on_progress(index.ntotal, len(corpus))
        return cls(corpus, index, embedder, kind, name=name)

    def save(self, folder: str | Path) -> None:
        """Write the index and its documents; an old index there is replaced when the new one is whole.

        Raises:
            ConfigurationError: it cannot be written, or a document is nothing that JSON can hold.
        """
        facts = {"kind": KIND, "index": self._kind, "model": self.embedder.model, "documents": len(self.corpus)}
        with new_folder(Path(folder), facts) as staged:
            self.corpus.save(staged)
            if self._index is not None:
                faiss.write_index(self._index, str(staged / FILE))

    @classmethod
    def load(cls, folder: str | Path, embedder: Embedder, *, name: str = "dense") -> Dense:
        """Read what `save` wrote.

        Args:
            folder: the index.
            embedder: of the same model, by name.
            name: what results call it.

        Raises:
            IndexFileError: there is none, it is broken, or of another model.
        """
        manifest = read_manifest(Path(folder), KIND)
        if manifest.get("model") != embedder.model:
            raise IndexFileError(
                f"{folder} was made by the model {str(manifest.get('model'))[:80]}, not by {embedder.model[:80]}: "
                "give that embedder, or build the index anew"
            )
        file = Path(folder) / FILE
        try:
            index = faiss.read_index(str(file)) if file.is_file() else None
        except RuntimeError as exc:
            raise IndexFileError(f"{file} cannot be read: build the index anew, and save it there") from exc
        return cls(load_corpus(Path(folder)), index, embedder, manifest["index"], name=name)

    def search(self, query: str, k: int, filter: Filter | None = None) -> list[Candidate[Any]]:
        """See `Retriever.search`.

        Raises:
            InvalidResponseError: the embedder gave no finite vector.
            ConfigurationError: it gave one of another dimension than the index has.
        """
        check_search(query, k)
        if self._index is None:
            return []
        allowed = np.flatnonzero(self.corpus.allowed(filter)).astype(np.int64)
        if allowed.size == 0:
            return []
        vector = self._query(query)
        scores, rows = self._index.search(vector[None], min(k, allowed.size), params=self._parameters(allowed, k))
        found = [(float(score), int(row)) for score, row in zip(scores[0], rows[0], strict=True) if row >= 0]
        found.sort(key=lambda pair: (-pair[0], pair[1]))  # equal ones in the corpus' order
        return [self.corpus.candidate(row, score) for score, row in found]

    def scores_of(self, query: str, ids: Sequence[str]) -> dict[str, float]:
        """See `ScoringRetriever.scores_of`."""
        rows = self.corpus.rows(ids)
        if not rows:
            return {}
        vectors = self._index.reconstruct_batch(np.array(list(rows.values()), np.int64))
        return {id: float(score) for id, score in zip(rows, vectors @ self._query(query), strict=True)}

    def _query(self, query: str) -> npt.NDArray[np.float32]:
        vector = self.embedder.query(query)
        if vector.size != self._index.d:
            raise ConfigurationError(
                f"{self.embedder.model} gave a vector of {vector.size} dimensions, the index has {self._index.d}: "
                "give the embedder that made the index"
            )
        return vector

    def _parameters(self, allowed: npt.NDArray[np.int64], k: int) -> Any:
        chosen = faiss.IDSelectorBatch(allowed) if allowed.size < len(self.corpus) else None
        if self._kind == "flat":
            return faiss.SearchParameters(sel=chosen)
        return faiss.SearchParametersHNSW(sel=chosen, efSearch=max(SEARCH_DEPTH, k))


def _empty_index(kind: Kind, dimensions: int) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(dimensions)
    index = faiss.IndexHNSWFlat(dimensions, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_DEPTH
    return index
