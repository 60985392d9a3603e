"""The command against a real Triton, as a shell runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.odd_servers import start_unchecked, write_certificates
from support.tritons import only_bert

from triton_rerank.cli import main
from triton_rerank_server import TritonServer

COMMAND = [sys.executable, "-m", "triton_rerank.cli"]
DEMO, TINY = "minilm-l6-demo", "tiny-bert"
QUERY = "how do I make a file smaller?"
DOCUMENTS = [
    {"id": 7, "text": "A file cabinet with four drawers."},
    {"id": 8, "text": "gzip shrinks files, ünï — so that they take less room.", "tags": ["ü", None, 1.5]},
    {"id": 9, "text": "gzip shrinks files."},
]
JSONL = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)


def run(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    given = None if stdin is None else stdin.encode()
    return subprocess.run(
        [*COMMAND, *arguments], input=given, capture_output=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.fixture
def basic(server: TritonServer) -> list[str]:
    return ["rerank", "--target", server.grpc_target, "--model", DEMO, "--query", QUERY]


def test_jsonl_from_a_pipe_comes_back_as_it_was(basic: list[str]) -> None:
    process = run(*basic, "--documents", "-", "--format", "jsonl", "--json", stdin=JSONL)
    assert (process.returncode, process.stderr) == (0, b"")
    assert process.stdout.count(b"\n") == 1
    result: dict[str, Any] = json.loads(process.stdout)
    assert [ranked["index"] for ranked in result["documents"]][-1] == 0
    assert all(ranked["document"] == DOCUMENTS[ranked["index"]] for ranked in result["documents"])
    assert result["model"] == DEMO


def test_text_from_a_pipe_is_one_document_a_line(basic: list[str]) -> None:
    process = run(*basic, "--documents", "-", "--top-k", "1", stdin="drawers\n\ngzip shrinks files\n")
    assert (process.returncode, process.stderr) == (0, b"")
    head, best, foot = process.stdout.decode().splitlines()
    assert head.split() == ["rank", "score", "before", "document"]
    assert best.split()[2:] == ["2", "gzip", "shrinks", "files"]
    assert foot.startswith("3 pairs, ")


def test_another_key_a_least_score_and_a_length(basic: list[str], tmp_path: Path) -> None:
    path = tmp_path / "documents.ndjson"
    path.write_text("".join(json.dumps({"body": document["text"]}) + "\n" for document in DOCUMENTS))
    arguments = [*basic, "--documents", str(path), "--text-key", "body", "--max-length", "32", "--json"]
    scores = [ranked["score"] for ranked in json.loads(run(*arguments).stdout)["documents"]]
    assert len(scores) == 3
    kept = json.loads(run(*arguments, "--min-score", str(scores[1])).stdout)["documents"]
    assert [ranked["score"] for ranked in kept] == scores[:2]


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_output_is_utf8_in_any_locale(basic: list[str], locale: dict[str, str], form: list[str]) -> None:
    process = run(*basic, "--documents", "-", "--format", "jsonl", *form, stdin=JSONL, **locale)
    assert (process.returncode, process.stderr) == (0, b"")
    assert "ünï — so" in process.stdout.decode("utf-8")


def test_what_is_no_unicode_beside_the_text_survives(basic: list[str]) -> None:
    document = {"text": "gzip shrinks files", "title": "half a \ud83d pair"}
    process = run(*basic, "--documents", "-", "--format", "jsonl", "--json", stdin=json.dumps(document))
    assert (process.returncode, process.stderr) == (0, b"")
    assert json.loads(process.stdout)["documents"][0]["document"] == document


def test_it_stands_in_the_middle_of_a_pipe(basic: list[str]) -> None:
    """More output than a pipe holds, to a reader that wants one line of it."""
    lines = "".join(f"{number} {'word ' * 100}\n" for number in range(400))
    command = [*COMMAND, *basic, "--documents", "-", "--max-length", "16", "--timeout-s", "60"]
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "500"},
        ) as rerank,
        subprocess.Popen(["head", "-n", "1"], stdin=rerank.stdout, stdout=subprocess.PIPE) as head,
    ):
        assert rerank.stdin is not None and rerank.stdout is not None and rerank.stderr is not None
        rerank.stdout.close()
        rerank.stdin.write(lines.encode())
        rerank.stdin.close()
        assert head.communicate()[0].split() == [b"rank", b"score", b"before", b"document"]
        assert rerank.stderr.read() == b""
        assert rerank.wait(60) == 128 + signal.SIGPIPE


def test_the_health_of_servers_one_line_each(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--model", DEMO, "--target", server.grpc_target]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    known = "sigmoid, int8, max_length 512, max_batch_size 256"
    assert line.startswith(f"{server.grpc_target}  healthy  {DEMO} version 1: {known}; a pair took ")
    targets = f"127.0.0.1:1,{server.grpc_target},127.0.0.1:{server.http_port}"
    assert main(["health", "--model", DEMO, "--target", targets, "--json"]) == 4
    dead, well, wrong = map(json.loads, capsys.readouterr().out.splitlines())
    assert (dead["healthy"], dead["answers"], dead["error"]) == (False, False, "ServerUnavailableError")
    assert (wrong["healthy"], wrong["answers"], wrong["error"]) == (False, False, "ServerUnavailableError")
    assert (well["healthy"], well["answers"], well["ready"], well["error"], well["exit_code"]) == (
        True,
        True,
        True,
        None,
        0,
    )
    assert (well["info"]["name"], well["info"]["activation"], well["info"]["max_length"]) == (DEMO, "sigmoid", 512)
    assert 0 < well["scoring_s"] < 5


def test_the_health_of_a_model_that_is_not_there(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--model", "no-such-model", "--target", server.grpc_target, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["answers"], told["ready"], told["healthy"], told["error"]) == (
        True,
        False,
        False,
        "ConfigurationError",
    )


@pytest.fixture(scope="module")
def guarded(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, Path]]:
    """Mutual TLS, and a header for inference."""
    certificates = tmp_path_factory.mktemp("certificates")
    arguments = [*write_certificates(certificates), "--grpc-restricted-protocol=inference:key=value"]
    with start_unchecked(only_bert(tiny_repository, tmp_path_factory.mktemp("bert")), *arguments) as server:
        yield server, certificates


def test_certificates_and_headers_reach_the_server(
    guarded: tuple[TritonServer, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    server, folder = guarded
    target = ["--model", TINY, "--target", server.grpc_target]
    tls = ["--tls-ca", str(folder / "ca.pem"), "--tls-key", str(folder / "client.key.pem")]
    tls += ["--tls-cert", str(folder / "client.pem")]
    header = ["--header", "triton-grpc-protocol-key=value"]
    assert main(["health", *target, *tls, *header]) == 0
    capsys.readouterr()
    assert main(["health", *target, *tls, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["answers"], told["ready"], told["healthy"]) == (True, True, False)  # ready, and yet it scores nothing
    assert main(["health", *target, *header, "--tls"]) == 3  # the usual authorities did not sign this one
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().out
    assert main(["health", *target, *tls, *header, "--tls-name", "other.example"]) == 3
    assert "give the certificate's name" in capsys.readouterr().out
    assert main(["health", *target, *header]) == 4  # plain text
