from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from triton_rerank import InvalidRequestError, RankedDocument, RerankResult, Timings, Usage
from triton_rerank.cli import format_ranking, main, read_documents


def result(*texts: str) -> RerankResult:
    ranked = tuple(RankedDocument(i, text, 0.5, 0.0, False) for i, text in enumerate(texts))
    return RerankResult(ranked, "m", Usage(len(texts), 9), Timings(0.0123, 0.01, 1))


def test_one_document_a_line_and_empty_lines_keep_their_place(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("first\n\nthird\n")
    assert read_documents(str(tmp_path / "d.txt")) == ["first", "", "third"]


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("")
    assert read_documents(str(tmp_path / "d.txt")) == []


def test_jsonl_gives_the_key_text(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "one\\ntwo", "id": 4}\n{"text": ""}\n')
    assert read_documents(str(tmp_path / "d.jsonl")) == ["one\ntwo", ""]


@pytest.mark.parametrize("line", ["not json", '{"body": "x"}', "[1]"])
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(InvalidRequestError, match=r"d\.jsonl:2: not an object with a key"):
        read_documents(str(tmp_path / "d.jsonl"))


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\nü\n".encode())))
    assert read_documents("-") == ["a", "ü"]


def test_a_file_that_is_not_there_ends_with_2_and_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerank", "--model", "m", "--query", "q", "--documents", "/no/such"]) == 2
    assert "--documents /no/such: cannot be read" in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_with_1_and_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.txt").write_text("a\n")
    arguments = ["--model", "m", "--query", "q", "--documents", str(tmp_path / "d.txt"), "--target", "127.0.0.1:1"]
    assert main(["rerank", *arguments]) == 1
    assert "check the address and that the server runs" in capsys.readouterr().err


def test_the_table_fits_the_terminal_and_shows_no_control_characters() -> None:
    table = format_ranking(result("x" * 300, "two\nlines\x1b[31m"), width=60)
    assert max(len(line) for line in table.splitlines()[:-1]) == 60
    assert "\x1b" not in table
    assert "two lines" in table
    assert table.splitlines()[-1].startswith("2 pairs, 9 tokens in 12.3 ms (1 request to m)")
