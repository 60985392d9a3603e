"""BM25 on the public collections gives the known figures; skipped where they are not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_rerank_bench.collections import load_collection
from triton_rerank_bench.quality import BM25, Trial, summarise

DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "n_judged", "ndcg_at_10", "mrr_at_10"), [("cisi", 76, 0.3957, 0.6457), ("cacm", 52, 0.4995, 0.7472)]
)
def test_bm25_reproduces_the_yardstick(name: str, n_judged: int, ndcg_at_10: float, mrr_at_10: float) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"the collection {name} is not at ../shared/data, beside the project's folder")
    quality = summarise(Trial(load_collection(folder)), [], seed=1)
    (bm25,) = quality.systems
    assert bm25.system == BM25
    assert quality.n_judged == n_judged
    assert bm25.ndcg_at_10 == pytest.approx(ndcg_at_10, abs=6e-5)
    assert bm25.mrr_at_10 == pytest.approx(mrr_at_10, abs=6e-5)
