"""Files of documents, as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triton_rerank import InvalidRequestError
from triton_rerank.documents import read_documents

TWO = [{"text": "gzip shrinks files"}, {"text": "a file cabinet"}]
LINES = [json.dumps(document) for document in TWO]


def read(path: Path, content: str | bytes) -> list[object]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_documents(str(path))


@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\r\n\r\n", "\n\n\n\n"])
def test_blank_lines_of_jsonl_are_no_documents(tmp_path: Path, between: str) -> None:
    """microsoft/graphrag#2424, run-llama/llama_index#23097, Azure/PyRIT#1479: a blank line was "not JSON"."""
    assert read(tmp_path / "d.jsonl", between.join(LINES)) == TWO
    assert read(tmp_path / "d.jsonl", between + between.join(LINES) + between) == TWO


@pytest.mark.parametrize("name", ["D.JSONL", "d.Jsonl", "d.NDJSON", "d.jsonl"])
def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path: Path, name: str) -> None:
    """own: UP.JSONL was ranked as lines of plain text, without a word."""
    assert read(tmp_path / name, "\n".join(LINES) + "\n") == TWO


def test_a_json_array_is_read_as_one(tmp_path: Path) -> None:
    """own: a file with a JSON array was ranked as one line of plain text."""
    assert read(tmp_path / "d.json", json.dumps(TWO)) == TWO
    assert read(tmp_path / "d.json", json.dumps(TWO, indent=2)) == TWO


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\r\n", ["one", "two"]),
        (b"one\n\ntwo", ["one", "", "two"]),
        (b"", []),
    ],
    ids=["BOM and CRLF", "empty line", "empty file"],
)
def test_odd_text_files_are_read(tmp_path: Path, content: bytes, documents: list[str]) -> None:
    """own: byte order marks, CRLF and empty lines."""
    assert read(tmp_path / "d.txt", content) == documents


@pytest.mark.parametrize(
    "content",
    [
        *("one\ntwo".encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32-le")),
        b"one\xfftwo",
        b"PAR1\0",
    ],
)
def test_what_is_no_utf8_text_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    """own: UTF-16, archives and other bytes."""
    with pytest.raises(InvalidRequestError, match=r"d\.txt"):
        read(tmp_path / "d.txt", content)


@pytest.mark.parametrize("name", ["", "missing.txt"])
def test_a_folder_and_a_missing_file_are_refused_and_named(tmp_path: Path, name: str) -> None:
    """own: a folder instead of a file, and a name that is not there."""
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_documents(str(tmp_path / name))
