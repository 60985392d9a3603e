"""Bi-encoder: cosines of candidates, and embeddings kept in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from triton_rerank_bench.bi_encoder import BiEncoder, Embeddings, default_model, score_candidates
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.first_stage import Candidates

VECTORS = {"x": [1.0, 0.0], "y": [0.0, 1.0], "both": [0.6, 0.8]}


def embed(texts: Sequence[str]) -> Embeddings:
    return np.array([VECTORS[text] for text in texts], dtype=np.float32)


def test_cosines_follow_the_candidates_of_each_query() -> None:
    candidates = Candidates(np.array([[2, 0], [1, 2]]), np.zeros((2, 2)))
    cosines = score_candidates(embed, ["x", "y"], ["x", "y", "both"], candidates)
    assert cosines == pytest.approx(np.array([[0.6, 1.0], [1.0, 0.8]]))


def test_embeddings_are_unit_vectors_and_come_from_the_cache_the_second_time(tmp_path: Path) -> None:
    texts = ["compress a file", "gzip makes files smaller", "the weather in Spain"]
    first = BiEncoder(default_model(), tmp_path).embed(texts)
    (file,) = tmp_path.iterdir()
    np.save(file, first * 2)  # what is read back must be this
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert first[0] @ first[1] > first[0] @ first[2]
    assert BiEncoder(default_model(), tmp_path).embed(texts) == pytest.approx(first * 2)


def test_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"looked for model.safetensors"):
        BiEncoder(tmp_path, tmp_path)
