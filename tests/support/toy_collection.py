"""A test collection on disk, in BEIR form."""

from __future__ import annotations

import json
from pathlib import Path

DOCUMENTS = {
    "d1": ("Sorting", "Quicksort partitions an array around a pivot and sorts both halves."),
    "d2": ("Compression", "Huffman coding compresses a file by giving frequent symbols short codes."),
    "d3": ("Time sharing", ""),
    "d4": ("Parsing", "A recursive descent parser follows the grammar from the top down."),
    "d5": ("Files", "An archive holds a file beside others; some compress what they hold."),
    "d6": ("Arrays", "An array keeps its parts side by side, sorted or not."),
}
QUERIES = {
    "q1": "how do I compress a file?",
    "q2": "sort an array",
    "q3": "nobody judged this",
    "q4": "follow the grammar",
    "q5": "short codes for a file",
}
QRELS = [("q1", "d2", 2), ("q1", "d5", 1), ("q2", "d1", 1), ("q2", "d6", 0), ("q4", "d4", 1), ("q5", "d2", 1)]


def write_collection(folder: Path) -> Path:
    """Six documents, five queries, four of them judged."""
    folder.mkdir(parents=True)
    corpus = [json.dumps({"_id": name, "title": title, "text": text}) for name, (title, text) in DOCUMENTS.items()]
    queries = [json.dumps({"_id": name, "text": text}) for name, text in QUERIES.items()]
    qrels = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in QRELS)]
    for name, lines in {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels.tsv": qrels}.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
