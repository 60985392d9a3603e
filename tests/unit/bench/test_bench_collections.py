"""Collections in BEIR form: what is read, and what is said of a folder that is not one."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_rerank_bench.collections import FILES, load_collection
from triton_rerank_bench.errors import BenchError


def test_document_text_is_title_space_text_and_the_title_alone_where_the_text_is_empty(collection_folder: Path) -> None:
    collection = load_collection(collection_folder)
    assert collection.document_ids == ("d1", "d2", "d3", "d4")
    assert collection.documents[0] == "Sorting Quicksort partitions an array around a pivot and sorts both halves."
    assert collection.documents[2] == "Time sharing"


def test_queries_without_a_relevant_document_are_left_out(collection_folder: Path) -> None:
    collection = load_collection(collection_folder)
    assert collection.queries == {"q1": "how do I compress a file?", "q2": "sort an array"}
    assert collection.n_queries == 3
    assert collection.qrels == {"q1": {"d2": 1}, "q2": {"d1": 1}}  # d4 was judged, and found not relevant


def test_name_is_the_folders_own_also_when_given_as_a_relative_path(
    collection_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(collection_folder)
    assert load_collection(Path()).name == "toy"


def test_unicode_line_separators_inside_a_text_do_not_end_the_line(collection_folder: Path) -> None:
    (collection_folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "a\u2028b"}\n{"_id": "q2", "text": "c"}\n', encoding="utf-8"
    )
    assert load_collection(collection_folder).queries["q1"] == "a\u2028b"


def test_missing_folder_is_told_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"absent: looked for corpus.jsonl, queries.jsonl, qrels.tsv.*BEIR form"):
        load_collection(tmp_path / "absent")


@pytest.mark.parametrize("name", FILES)
def test_one_missing_file_is_named(collection_folder: Path, name: str) -> None:
    (collection_folder / name).unlink()
    with pytest.raises(BenchError, match=f"looked for {name} there"):
        load_collection(collection_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{broken\n', r"corpus.jsonl, line 2: not JSON"),
        ("corpus.jsonl", '["d1"]\n', r"line 1: is a list"),
        ("corpus.jsonl", '{"_id": 7, "text": "a"}\n', r"line 1: _id is 7; a string"),
        ("queries.jsonl", '{"_id": "q1"}\n', r"line 1: text is None; a string"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1 d2 1\n", r"qrels.tsv, line 2: is 'q1 d2 1'"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td2\tyes\n", r"qrels.tsv, line 2"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td2\t0\n", r"no query has a relevant document"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq9\td2\t1\n", r"1 query ids .* such as 'q9'"),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td9\t1\n", r"1 document ids .* such as 'd9'"),
    ],
)
def test_malformed_content_is_told_with_its_place(
    collection_folder: Path, name: str, content: str, message: str
) -> None:
    (collection_folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(BenchError, match=message):
        load_collection(collection_folder)


def test_file_that_is_not_utf8_is_told(collection_folder: Path) -> None:
    (collection_folder / "queries.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(BenchError, match=r"queries.jsonl: cannot be read .* UTF-8"):
        load_collection(collection_folder)
