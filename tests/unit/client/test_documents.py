"""Files of documents as users have them: every form, every odd shape of it, and what a wrong name leads to."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import triton_rerank
from triton_rerank import InvalidRequestError
from triton_rerank.cli import main
from triton_rerank.documents import read_documents

A, B = {"text": "gzip shrinks files"}, {"text": "a file cabinet"}
LINES = f"{json.dumps(A)}\n\n  \n{json.dumps(B)}\n"
ARRAY = json.dumps([A, B], indent=1)
TABLE = 'id,text\n1,"gzip, ""shrinks""\nfiles"\n\n2,a file cabinet\n'
ROWS = [{"id": "1", "text": 'gzip, "shrinks"\nfiles'}, {"id": "2", "text": "a file cabinet"}]
BOM = "\ufeff"
SHARED = Path(__file__).parents[3].parent / "shared" / "cases" / "files"


def read(path: Path, **options: str) -> tuple[list[object], list[str]]:
    """The documents, and what was said of guesses."""
    said: list[str] = []
    return read_documents(str(path), say=said.append, **options), said


def written(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("blank.jsonl", LINES, [A, B]),
        ("UP.JSONL", BOM + LINES, [A, B]),
        ("Crlf.NdJson", LINES.replace("\n", "\r\n"), [A, B]),
        ("arr.json", ARRAY, [A, B]),
        ("ARR.JSON", BOM + ARRAY + "\n\n", [A, B]),
        ("strings.json", '["a", "b"]', ["a", "b"]),
        ("empty.json", "[]", []),
        ("t.csv", TABLE, ROWS),
        ("T.CSV", BOM + TABLE.replace("\n", "\r\n"), [{**ROWS[0], "text": 'gzip, "shrinks"\r\nfiles'}, ROWS[1]]),
        ("t.tsv", "id\ttext\n1\ta, b\n", [{"id": "1", "text": "a, b"}]),
        ("d.txt", "{not json\n[1, 2\n", ["{not json", "[1, 2"]),
        ("d.md", "# a\n\nb", ["# a", "", "b"]),
    ],
)
def test_a_file_is_read_as_its_name_says_gzipped_or_not(
    tmp_path: Path, name: str, content: str, documents: list[object]
) -> None:
    assert read(written(tmp_path, name, content)) == (documents, [])
    assert read(written(tmp_path, f"{name}.GZ", gzip.compress(content.encode(), mtime=0))) == (documents, [])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("lines.json", LINES, "was read as JSON, one value a line"),
        ("noname", LINES, "was read as JSON, one value a line"),
        ("d.data", ARRAY, "was read as a JSON array"),
        ("d.jsonl", gzip.compress(LINES.encode(), mtime=0), "is gzipped, and was unpacked"),
    ],
)
def test_a_guess_is_said(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    documents, (said,) = read(written(tmp_path, name, content))
    assert documents == [A, B]
    assert said.startswith(f"{tmp_path / name} {words}")


def test_another_separator_is_found_in_the_head_line_and_said(tmp_path: Path) -> None:
    documents, (said,) = read(written(tmp_path, "t.csv", "id;text\n1;a, b\n"))
    assert documents == [{"id": "1", "text": "a, b"}]
    assert "';' between its columns" in said


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("d.txt", LINES, "holds JSON, one value a line: say --format jsonl"),
        ("d.txt", ARRAY, "holds a JSON array: say --format json"),
        ("d.jsonl", ARRAY, "holds a JSON array: say --format json"),
        ("d.csv", LINES, "holds JSON, one value a line: say --format jsonl"),
        ("d.txt.gz", "a\nb\n", "not gzipped: rename it"),
    ],
)
def test_a_name_that_contradicts_the_content_is_refused_with_what_to_do(
    tmp_path: Path, name: str, content: str, remedy: str
) -> None:
    with pytest.raises(InvalidRequestError, match=remedy):
        read(written(tmp_path, name, content))


def test_what_is_said_outright_is_done(tmp_path: Path) -> None:
    assert read(written(tmp_path, "d.txt", LINES), form="jsonl") == ([A, B], [])
    assert len(read(written(tmp_path, "d.jsonl", LINES), form="text")[0]) == 4
    assert read(written(tmp_path, "d.txt", TABLE), form="csv") == (ROWS, [])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.json", '{"documents": []}\n', r"d\.json:1: neither a string nor an object"),
        ("d.json", '{\n"text": "a"\n}', "one JSON value: it must be an array"),
        ("d.json", '[{"text": "a"}, {"body": "b"}]', r"d\.json\[1\]: neither"),
        ("d.json", "nothing of the kind", "not JSON"),
        ("d.jsonl", LINES + "{", r"d\.jsonl:5: not JSON"),
        ("d.csv", "id,body\n1,a\n", r"one column 'text' and has 'id', 'body': --text-key"),
        ("d.csv", "text,text\n1,a\n", "one column 'text'"),
        ("d.csv", "", "one column 'text'"),
        ("d.csv", "id,text\n1,a,b\n", r"d\.csv:2: 3 cells, and the head line has 2"),
        ("d.csv", 'id,text\n1,"never ends\n', "not CSV"),
        ("d.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:30], "cannot be read"),
        ("d.txt", "a".encode("utf-16"), "cannot be read.*give a UTF-8 file"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as error:
        read(written(tmp_path, name, content))
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_long_cell_is_read_and_the_modules_own_bound_is_left_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(read(written(tmp_path, "d.csv", "text\n" + "x" * 200_000))[0]) == 1
    assert csv.field_size_limit() == before


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = Path.read_bytes

    def noted(path: Path) -> bytes:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    for name, content in (("a.json", LINES), ("b.csv", TABLE), ("c", ARRAY)):
        read(written(tmp_path, name, content))
    assert len(opened) == 3


@pytest.mark.parametrize("name", ["blank.jsonl", "UP.JSONL", "arr.json"])
def test_the_handed_cases_have_two_documents_each(name: str) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not there")
    documents, said = read(SHARED / name)
    assert (len(documents), said) == (2, [])


# --- the command ----------------------------------------------------------------------------------------------------


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process: exit code, output, and what it says on standard error."""

    def command(*arguments: str, **environment: str) -> tuple[int, str, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        try:
            code = main(arguments)
        except SystemExit as exc:  # argparse's
            code = int(exc.code or 0)
        return code, *capsys.readouterr()

    return command


def test_the_command_says_a_guess_and_refuses_a_contradiction(tmp_path: Path, run: Run) -> None:
    common = ("rerank", "--target", "127.0.0.1:1", "--model", "m", "--query", "q", "--timeout-s", "5", "--documents")
    code, _, said = run(*common, str(written(tmp_path, "d", LINES)))
    assert code == 4
    assert said.splitlines()[0].startswith("triton-rerank: ")
    assert "was read as JSON, one value a line" in said.splitlines()[0]
    code, _, said = run(*common, str(written(tmp_path, "d.txt", LINES)))
    assert (code, "say --format jsonl" in said) == (2, True)


def test_the_version_is_told() -> None:
    command = [sys.executable, "-m", "triton_rerank.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"triton-rerank {triton_rerank.__version__}\n")
    assert triton_rerank.__version__[0].isdigit()


def test_target_and_model_come_from_the_environment_unless_they_are_given(run: Run) -> None:
    environment = {"TRITON_RERANK_TARGET": "127.0.0.1:1", "TRITON_RERANK_MODEL": "from-outside"}
    code, told, _ = run("health", "--timeout-s", "5", **environment)
    assert (code, "'from-outside' at 127.0.0.1:1" in told) == (4, True)
    _, told, _ = run("health", "--timeout-s", "5", "--target", "127.0.0.1:2", "--model", "given", **environment)
    assert "'given' at 127.0.0.1:2" in told
    assert run("health", TRITON_RERANK_MODEL="")[0] == 2


def test_health_says_no_answer_of_a_target_that_nobody_asked(run: Run) -> None:
    for target in ("not a target", "127.0.0.1:1"):
        told = json.loads(run("health", "--json", "--timeout-s", "5", "--target", target, "--model", "m")[1])
        assert (told["answers"], told["ready"], told["healthy"]) == (False, False, False)
    told = run("health", "--json", "--tls-ca", "/no/such.pem", "--target", "127.0.0.1:1", "--model", "m")[1]
    assert json.loads(told)["answers"] is False
