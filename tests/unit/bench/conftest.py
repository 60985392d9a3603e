"""A small test collection on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DOCUMENTS = {
    "d1": ("Sorting", "Quicksort partitions an array around a pivot and sorts both halves."),
    "d2": ("Compression", "Huffman coding compresses a file by giving frequent symbols short codes."),
    "d3": ("Time sharing", ""),
    "d4": ("Parsing", "A recursive descent parser follows the grammar from the top down."),
}
QUERIES = {"q1": "how do I compress a file?", "q2": "sort an array", "q3": "nobody judged this"}
QRELS = [("q1", "d2", 1), ("q2", "d1", 1), ("q2", "d4", 0)]


@pytest.fixture
def collection_folder(tmp_path: Path) -> Path:
    """A folder in BEIR form: four documents, three queries, two of them judged."""
    folder = tmp_path / "toy"
    folder.mkdir()
    corpus = [json.dumps({"_id": name, "title": title, "text": text}) for name, (title, text) in DOCUMENTS.items()]
    queries = [json.dumps({"_id": name, "text": text}) for name, text in QUERIES.items()]
    qrels = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in QRELS)]
    for name, lines in {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels.tsv": qrels}.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
