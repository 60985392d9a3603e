"""Haystack: BM25 finds, the served model orders, a prompt is built of the best three.

Needs `make serve`, and pip install 'triton-rerank[haystack]'. Behind "prompt" goes the generator of your choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.components.retrievers import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from triton_rerank.integrations.haystack import TritonRanker

PASSAGES = (Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").splitlines()
TEMPLATE = """Answer from these passages:
{% for document in documents %}{{ "%.3f" | format(document.score) }}  {{ document.content }}
{% endfor %}Question: {{ query }}"""


def main() -> None:
    """Print the prompt that BM25, the reranker and a prompt builder make as one pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="how do I make a file smaller?")
    parser.add_argument("--target", default="127.0.0.1:8001", help="host:port of Triton")
    options = parser.parse_args()

    store = InMemoryDocumentStore()
    store.write_documents([Document(content=passage) for passage in PASSAGES])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=15))
    pipeline.add_component("ranker", TritonRanker("minilm-l6-demo", target=options.target, top_k=3, timeout_s=60))
    pipeline.add_component("prompt", PromptBuilder(TEMPLATE, required_variables="*"))
    pipeline.connect("retriever.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "prompt.documents")

    query = {"query": options.query}
    print(pipeline.run({"retriever": query, "ranker": query, "prompt": query})["prompt"]["prompt"])


if __name__ == "__main__":
    main()
