"""Pairs in every form, and what is refused of them; the parts of the command that need no server."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import triton_rerank_bulk
from triton_rerank import InvalidRequestError
from triton_rerank_bulk import cli, scoring
from triton_rerank_bulk.pairs import DOCUMENTS, QUERIES, Texts, find_source, load_pairs


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_all_is_sorted_and_there() -> None:
    assert triton_rerank_bulk.__all__ == sorted(triton_rerank_bulk.__all__)
    assert all(hasattr(triton_rerank_bulk, name) for name in triton_rerank_bulk.__all__)


def test_ray_is_imported_by_its_engine_only_and_named_where_it_is_missing() -> None:
    done = python(
        "import sys, triton_rerank_bulk.cli as cli\n"
        "assert not {'ray', 'torch', 'pandas'} & set(sys.modules)\n"
        "sys.modules['ray'] = None\n"
        "next(cli.run_ray(None, [0], (1, 1), 'local', 1.0))"
    )
    assert "pip install 'triton-rerank-bulk[ray]'" in done.stderr
    assert "ConfigurationError: " in done.stderr


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """2,050 documents, more than two record batches hold."""
    write(tmp_path / "queries.jsonl", *({"_id": f"q{n}", "text": f"query {n}"} for n in range(3)))
    write(tmp_path / "corpus.jsonl", *({"_id": f"d{n}", "title": "T", "text": f"text {n}"} for n in range(2050)))
    return tmp_path


def test_a_run_becomes_rows_of_texts_with_the_pairs_of_a_query_side_by_side(collection: Path, tmp_path: Path) -> None:
    names = [("q1", "d2049"), ("q0", "d1024"), ("q1", "d0"), ("q0", "d1023")]
    write(collection / "run.trec", *(f"{query}\tQ0  {document} 1 0.5 tag" for query, document in names), "")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    assert find_source(collection, None).prepare(inputs) == 4
    queries, documents = Texts(inputs / QUERIES), Texts(inputs / DOCUMENTS)
    assert (len(queries), len(documents)) == (3, 2050)
    rows = [(queries.id(int(q)), documents.id(int(d))) for q, d in zip(*load_pairs(inputs), strict=True)]
    assert rows == [("q0", "d1024"), ("q0", "d1023"), ("q1", "d2049"), ("q1", "d0")]
    assert [documents.text(row) for row in (0, 1024, 2049)] == ["T text 0", "T text 1024", "T text 2049"]


ROW = {"query_id": "q", "document_id": "d", "query": "a", "document": "b"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROW, "{"], "line 2: is no JSON"),
        ([{**ROW, "document_id": 7}], "line 1: query_id, document_id, query, document must be texts"),
        ([{**ROW, "document": "\ud800"}], "line 1: a text is no Unicode"),
        ([ROW, {**ROW, "document_id": "e", "query": "another"}], "row 2: the query 'q' has two different texts"),
        ([ROW, ROW], "1 pairs stand twice, such as q d"),
        ([], "has no pairs"),
    ],
)
def test_pairs_that_are_refused(rows: list[object], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", *rows)
    with pytest.raises(InvalidRequestError, match=said):
        find_source(path, None).prepare(tmp_path)


def test_parquet_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"query_id": ["q"], "document": ["d"]}), path)
    with pytest.raises(InvalidRequestError, match="has no column document_id, query, but query_id, document"):
        find_source(path, None).prepare(tmp_path)
    pq.write_table(pa.table({name: pa.array([None, "x"], pa.string()) for name in ROW}), path)
    with pytest.raises(InvalidRequestError, match="rows 1 to 2: a null among"):
        find_source(path, None).prepare(tmp_path)


def test_a_run_that_is_refused(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="run.trec is not there"):
        find_source(collection, None)
    write(collection / "run.trec", "q0 Q0 d1 1 0.5")
    with pytest.raises(InvalidRequestError, match="line 1: 'q0 Q0 d1 1 0.5.*is not query Q0 document rank score tag"):
        find_source(collection, None).prepare(tmp_path)
    with pytest.raises(InvalidRequestError, match="a run has ids only: name the texts' folder by --collection"):
        find_source(collection / "run.trec", None)
    with pytest.raises(InvalidRequestError, match="of an unknown form"):
        find_source(write(tmp_path / "pairs.xlsx"), None)


def test_the_digest_is_of_what_stands_in_the_files(collection: Path, tmp_path: Path) -> None:
    write(collection / "run.trec", "q0 Q0 d1 1 0.5 tag")
    first = find_source(collection, None).digest()
    assert find_source(collection / "run.trec", collection).digest() == first
    write(collection / "run.trec", "q0 Q0 d2 1 0.5 tag")
    assert find_source(collection, None).digest() != first


def test_calls_are_of_one_query_and_of_256_pairs_at_most() -> None:
    queries = np.repeat([4, 5, 9], [1, 600, 2])
    slices = list(scoring._calls(queries))
    assert [len(queries[each]) for each in slices] == [1, 256, 256, 88, 2]
    assert all(len(set(queries[each])) == 1 for each in slices)


def test_the_window_halves_and_grows_by_one_a_round() -> None:
    window = scoring._Window(8)
    sizes = []
    for had_room in [False, False, False, False, *[True] * 40]:
        window.tell(had_room=had_room)
        sizes.append(int(window._size))
    assert sizes[:4] == [4, 2, 1, 1]
    assert sizes[4:6] == [2, 2]
    assert sizes[-1] == 8
    assert sizes[4:] == sorted(sizes[4:])


def test_progress_has_rate_and_time_left() -> None:
    progress = cli.Progress(10_000, 4_000)
    progress.done, progress.errors = 6_000, 3
    assert progress.line(4.0) == "6,000 of 10,000 pairs (60.0%), 500 pairs/s, 0 h 00 min 08 s left, 3 errors"


def test_patience() -> None:
    assert (cli._seconds("0"), cli._seconds("2.5")) == (0, 2.5)
    for wrong in ("nan", "inf", "-1", "long"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{wrong}' is not a number of seconds from 0"):
            cli._seconds(wrong)


def test_workers() -> None:
    assert (cli._workers("3"), cli._workers("2:8")) == ((3, 3), (2, 8))
    for wrong in ("0", "8:2", "many", ":"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not N or LEAST:MOST"):
            cli._workers(wrong)
