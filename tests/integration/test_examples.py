"""The demo, the command line and the README's code, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.toy_collection import write_collection

from triton_rerank.cli import main
from triton_rerank_server import TritonServer

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DEFAULT_TARGET = "127.0.0.1:8001"


def content_words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def test_word_overlap_misleads_in_at_least_two_examples(
    passages: list[str], example_queries: list[dict[str, Any]]
) -> None:
    misled = [
        example
        for example in example_queries
        if len(content_words(example["query"]) & content_words(passages[example["misleading"]]))
        > len(content_words(example["query"]) & content_words(passages[example["answer"]]))
    ]
    assert len(misled) >= 2
    assert 20 <= len(passages) <= 25


@pytest.mark.timeout(180)
def test_the_demo_ranks_every_answer_first_and_ends_with_0(
    root: Path, model_repository: Path, passages: list[str], example_queries: list[dict[str, Any]]
) -> None:
    command = [sys.executable, str(root / "examples" / "demo.py"), "--model-repository", str(model_repository)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for example in example_queries:
        table = done.stdout.split(example["query"], 1)[1].splitlines()
        assert table[1].split() == ["rank", "score", "before", "document"]
        rank, _, before, *_ = table[2].split()
        assert (rank, before) == ("1", str(example["answer"]))
        assert passages[example["answer"]].startswith(table[2].split(maxsplit=3)[3].rstrip("…"))
    assert " ms (1 request to minilm-l6-demo)" in done.stdout


@pytest.mark.timeout(300)
def test_the_gateways_lines_get_rankings_and_ctrl_c_answers_what_it_took(root: Path, model_repository: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, str(root / "examples" / "gateway.py"), "--model-repository", str(model_repository)]
    slow = ["--", "--timeout-s", "120", "--max-timeout-s", "120", "--drain-s", "120"]  # machines
    terminal = subprocess.Popen(
        [*program, "--port", str(port), *slow], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert terminal.stdout is not None
        lines = [""]
        while "/openapi.json" not in lines[-1]:
            lines.append(terminal.stdout.readline())
            assert lines[-1], "it ended"
        asked = [line for line in lines if line.startswith("curl")]
        assert len(asked) == 7
        for line in asked:
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
            assert re.search(r'"(relevance_score|score|logit)":', done.stdout), done.stdout
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            assert http.get("/").status_code == 200
            body = {"query": "a b c", "documents": [f"{n} " * 100 for n in range(100)]}
            long = pool.submit(http.post, "/v1/rerank", json=body)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as other:
                while not long.done() and "in_flight_pairs 100.0" not in other.get("/metrics").text:
                    time.sleep(0.01)
            os.killpg(terminal.pid, signal.SIGINT)  # as a terminal does
            assert len(long.result().json()["results"]) == 100
        assert terminal.wait(60) == 0
        with socket.socket() as gone:
            assert gone.connect_ex(("127.0.0.1", port)) != 0
    finally:
        terminal.terminate()  # it ends the gateway and Triton
        terminal.wait(60)


def test_the_demo_without_a_repository_says_what_to_do(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "examples" / "demo.py"), "--model-repository", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "`make export` builds one" in done.stderr


def test_the_command_prints_a_table_or_json(
    root: Path, server: TritonServer, capsys: pytest.CaptureFixture[str], example_queries: list[dict[str, Any]]
) -> None:
    example = example_queries[0]
    arguments = ["rerank", "--target", server.grpc_target, "--model", "minilm-l6-demo", "--query", example["query"]]
    arguments += ["--documents", str(root / "examples" / "passages.txt"), "--top-k", "3"]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5  # head, three ranks, foot
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["documents"][0]["index"] == example["answer"]
    assert {"documents", "model", "served_by", "degraded", "reason", "usage", "timings"} <= set(result)


def blocks_of(page: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


@pytest.mark.parametrize(("page", "shown"), [("README.md", "gzip"), ("docs/client.md", "8 0.")])
def test_the_pages_python_runs(
    root: Path,
    server: TritonServer,
    model_repository: Path,
    capsys: pytest.CaptureFixture[str],
    page: str,
    shown: str,
) -> None:
    blocks = blocks_of(root / page, "python")
    assert blocks
    for block in blocks:
        here = block.replace(DEFAULT_TARGET, server.grpc_target)
        here = here.replace('"model_repository"', repr(str(model_repository)))
        here = here.replace("start_http_server(9100)", "start_http_server(0)")  # another run may have that port
        exec(compile(here, page, "exec"), {})
    assert shown in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("page", ["README.md", "docs/client.md"])
def test_the_pages_commands_exist(
    root: Path, server: TritonServer, model_repository: Path, tmp_path: Path, page: str
) -> None:
    lines = [line.split("#")[0].strip() for block in blocks_of(root / page, "bash") for line in block.splitlines()]
    assert lines
    for line in filter(None, lines):
        if line.startswith("make "):
            subprocess.run([*line.split(), "--dry-run"], cwd=root, check=True, capture_output=True, timeout=60)
        elif line.startswith("triton-rerank "):
            command = f"PATH='{Path(sys.executable).parent}':$PATH {line.replace(DEFAULT_TARGET, server.grpc_target)}"
            subprocess.run(["bash", "-c", command], cwd=root, check=True, capture_output=True, timeout=60)
        elif line.startswith("triton-rerank-eval "):
            data = write_collection(tmp_path / "my-collection")
            here = line.replace("my-collection", str(data)).replace(" model_repository", f" {model_repository}")
            command = f"PATH='{Path(sys.executable).parent}':$PATH {here} --model minilm-l6-demo --check"
            subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=120)
        else:
            assert line.startswith(("git clone", "cd ", "pip install")), line


def test_the_readme_has_the_two_commands(root: Path) -> None:
    lines = [
        line.split("#")[0].strip() for block in blocks_of(root / "README.md", "bash") for line in block.splitlines()
    ]
    assert {"make demo", "make test"} <= set(lines)


def test_the_readme_is_short(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) < 200
