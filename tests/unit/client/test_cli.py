"""The command without a server: its files, its words, its exit codes, and how it ends when it is cut off."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.load import BusyClock
from support.odd_servers import silent
from support.tritons import wait_until

from triton_rerank import (
    AllScorersFailedError,
    InvalidRequestError,
    RankedDocument,
    RerankClient,
    RerankResult,
    Timings,
    Usage,
    errors,
)
from triton_rerank.cli import exit_codes, format_ranking, main
from triton_rerank.documents import read_documents

COMMAND = [sys.executable, "-m", "triton_rerank.cli"]
NOBODY = "127.0.0.1:1"
CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.RerankError)]
RAISED = [error for error in CLASSES if sum(issubclass(other, error) for other in CLASSES) == 1]  # the leaves


def result(*texts: str, **fields: Any) -> RerankResult[str]:
    ranked = tuple(RankedDocument(i, text, 0.5, 0.0, False) for i, text in enumerate(texts))
    return RerankResult(ranked, "m", Usage(len(texts), 9), Timings(0.0123, 0.01, 1), **fields)


def written(folder: Path, name: str, content: bytes | str) -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


@pytest.fixture
def still() -> Iterator[str]:
    with silent(greets=True) as target:
        yield target


# --- documents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("first\n\nthird\n", ["first", "", "third"]),
        ("first\r\nsecond\r\n", ["first", "second"]),
        ("\ufefffirst\nlast without an end", ["first", "last without an end"]),
        ("a\u2028b\x0bc\x85d\n", ["a\u2028b\x0bc\x85d"]),  # a line ends with \n, and with nothing else
        ("\n", [""]),
        ("", []),
    ],
)
def test_a_text_file_has_one_document_a_line(tmp_path: Path, content: str, documents: list[str]) -> None:
    assert read_documents(written(tmp_path, "d.txt", content)) == documents


def test_jsonl_holds_objects_and_strings_which_stay_what_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, "d.jsonl", '{"text": "one\\ntwo", "id": 4}\n"plain"\n{"text": ""}\n')
    assert read_documents(path) == [{"text": "one\ntwo", "id": 4}, "plain", {"text": ""}]
    path = written(tmp_path, "d.ndjson", '{"body": "x"}')
    assert read_documents(path, text_key="body") == [{"body": "x"}]


@pytest.mark.parametrize(
    ("name", "form"), [("d.txt", "jsonl"), ("d", "jsonl"), ("d.jsonl", "auto"), ("d.jsonl", "jsonl")]
)
def test_the_form_goes_by_the_name_unless_it_is_told(tmp_path: Path, name: str, form: str) -> None:
    assert read_documents(written(tmp_path, name, '"a"\n'), form=form) == ["a"]
    assert read_documents(str(tmp_path / name), form="text") == ['"a"']


@pytest.mark.parametrize("line", ["not json", '{"body": "x"}', '{"text": 5}', "[1]", "7", "[" * 100_000])
def test_a_bad_jsonl_line_is_named_in_one_short_line(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, "d.jsonl", '{"text": "a"}\n' + line + "\n")
    with pytest.raises(InvalidRequestError, match=r"d\.jsonl:2: (not JSON|neither a string nor an object)") as error:
        read_documents(path)
    assert len(str(error.value)) < 250 + len(path)


@pytest.mark.parametrize(("form", "documents"), [("auto", ['"a"', "ü"]), ("text", ['"a"', "ü"])])
def test_a_dash_reads_standard_input_as_text(monkeypatch: pytest.MonkeyPatch, form: str, documents: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO('"a"\nü\n'.encode())))
    assert read_documents("-", form=form) == documents


def test_a_dash_reads_jsonl_if_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a", "id": 1}\n')))
    assert read_documents("-", form="jsonl") == [{"text": "a", "id": 1}]


def test_a_closed_standard_input_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InvalidRequestError, match="standard input is closed"):
        read_documents("-")


def test_an_unreadable_file_ends_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("/no/such", str(tmp_path), written(tmp_path, "latin1.txt", b"caf\xe9")):
        assert main(["rerank", "--model", "m", "--query", "q", "--documents", source]) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"triton-rerank: InvalidRequestError: --documents {source}: cannot be read")
        assert err.count("\n") == 1
        assert out == ""


# --- exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", RAISED, ids=lambda error: error.__name__)
def test_each_error_ends_with_its_own_code_and_one_line(
    error: type[errors.RerankError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AllScorersFailedError("a\nb", attempts=()) if error is AllScorersFailedError else error("a\nb")

    monkeypatch.setattr(RerankClient, "rerank", fail)
    path = written(tmp_path, "d.txt", "a\n")
    assert main(["rerank", "--model", "m", "--query", "q", "--documents", path]) == error.exit_code
    assert capsys.readouterr() == ("", f"triton-rerank: {error.__name__}: a b\n")


def test_the_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["rerank", "--help"], ["health", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert exit_codes() in capsys.readouterr().out
    listed = [int(line.split()[0]) for line in exit_codes().splitlines()[1:]]
    assert listed == sorted({0, 1, 130, 141, *(error.exit_code for error in RAISED)})


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rerank"],
        ["rerank", "--query", "q", "--documents", "-"],
        ["rerank", "--query", "q", "--documents", "-", "--model", "m", "--top-k", "two"],
        ["rerank", "--query", "q", "--documents", "-", "--model", "m", "--format", "xml"],
        ["health"],
    ],
)
def test_arguments_that_do_not_parse_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == InvalidRequestError.exit_code
    assert "triton-rerank" in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "d.txt", "a\n")
    assert main(["rerank", "--model", "m", "--query", "q", "--documents", path, "--target", NOBODY]) == 4
    assert "triton-rerank: ServerUnavailableError: 'm' at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["--header", "secret"], 3, "--header has no '='"),
        (["--header", "bad name=secret"], 3, "headers has 'bad name'"),
        (["--tls-ca", "/no/such.pem"], 3, "/no/such.pem: the certificate cannot be read"),
        (["--tls-key", __file__], 3, "private_key and certificate_chain go together"),
        (["--target", "http://127.0.0.1:8001"], 3, "is not host:port"),
        (["--timeout-s", "0"], 2, "timeout_s is 0.0"),
        (["--timeout-s", "nan"], 2, "timeout_s is nan"),
        (["--top-k", "0"], 2, "top_k is 0"),
        (["--min-score", "nan"], 2, "min_score is nan"),
        (["--max-length", "-3"], 2, "max_length is -3"),
        (["--query", " "], 2, "query is blank"),
    ],
)
def test_a_wrong_option_is_named_and_no_secret_is_shown(
    arguments: list[str], code: int, fragment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "d.txt", "a\n")
    basic = ["rerank", "--model", "m", "--query", "q", "--documents", path, "--target", NOBODY]
    assert main([*basic, *arguments]) == code
    told = capsys.readouterr().err
    assert fragment in told
    assert "secret" not in told
    assert told.count("\n") == 1


# --- output ---------------------------------------------------------------------------------------------------------


def test_the_table_fits_the_terminal_and_shows_no_control_characters() -> None:
    table = format_ranking(result("x" * 300, "two\nlines\x1b[31m"), width=60)
    assert max(len(line) for line in table.splitlines()[:-1]) == 60
    assert "\x1b" not in table
    assert "two lines" in table
    assert table.splitlines()[-1].startswith("2 pairs, 9 tokens in 12.3 ms (1 request to m)")


def test_the_table_shows_an_objects_text() -> None:
    document = {"body": "the text", "id": 3}
    ranked: RerankResult[Any] = RerankResult(
        (RankedDocument(0, document, 0.5, 0.0, False),), "m", Usage(1, 9), Timings(0.01, 0.01, 1)
    )
    assert "the text" in format_ranking(ranked, width=60, text_key="body")


def test_the_table_says_that_it_is_degraded_and_why() -> None:
    unscored = RankedDocument(0, "a", None, None, False)
    degraded = RerankResult(
        (unscored,),
        "none",
        Usage(1, 0),
        Timings(0.01, 0.0, 1),
        served_by="first-stage",
        degraded=True,
        reason="all gone",
    )
    lines = format_ranking(degraded, width=60).splitlines()
    assert lines[1].split() == ["1", "-", "0", "a"]
    assert lines[-1] == "degraded, served by first-stage: all gone"
    assert "degraded" not in format_ranking(result("a"), width=60)


def test_the_health_of_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["health", "--model", "m", "--target", f"{NOBODY}, 127.0.0.1:2"]
    assert main(arguments) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [[NOBODY, "no answer"], ["127.0.0.1:2", "no answer"]]
    assert main([*arguments, "--json"]) == 4
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["target"], second["target"]) == (NOBODY, "127.0.0.1:2")
    assert (first["healthy"], first["answers"], first["ready"], first["info"]) == (False, False, False, None)
    assert (first["error"], first["exit_code"]) == ("ServerUnavailableError", 4)


# --- cut off --------------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    many = ",".join([NOBODY] * 200)
    with subprocess.Popen(
        [*COMMAND, "health", "--model", "m", "--target", many], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 128 + signal.SIGPIPE


def test_a_full_disk_is_said_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [*COMMAND, "health", "--model", "m", "--target", NOBODY], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert process.returncode == 1
    assert process.stderr == "triton-rerank: cannot write: [Errno 28] No space left on device\n"


def connected(pid: int, port: int) -> bool:
    connections = psutil.Process(pid).net_connections(kind="tcp")
    return any(
        each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in connections
    )


@pytest.mark.parametrize("command", ["rerank", "health"])
def test_control_c_ends_it_at_once_with_130(still: str, command: str, tmp_path: Path) -> None:
    """grpc/grpc#3820, grpc/grpc#4148: Ctrl-C did not end a client that waited for a server."""
    arguments = [*COMMAND, command, "--model", "m", "--target", still, "--timeout-s", "60"]
    if command == "rerank":
        arguments += ["--query", "q", "--documents", written(tmp_path, "d.txt", "a\n")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert wait_until(partial(connected, process.pid, int(still.rpartition(":")[2])), 60.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)  # half of what it would wait
    assert (process.returncode, out, err) == (130, "", "")


def test_a_server_that_never_answers_ends_with_5_in_time(
    still: str, capsys: pytest.CaptureFixture[str], busy: BusyClock
) -> None:
    begin = time.monotonic()
    assert main(["health", "--model", "m", "--target", still, "--timeout-s", "0.5"]) == 5
    assert busy.own_s(begin) < 1.0
    assert capsys.readouterr().out.startswith(f"{still}  no answer  DeadlineExceededError")
