"""What the page and the example show runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.chat_endpoint import ChatEndpoint, asked

from triton_rerank_retrieval.eval.plan import read_plan

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(root: Path, language: str) -> list[str]:
    page = (root / "docs" / "retrieval.md").read_text(encoding="utf-8")
    return [body for kind, body in BLOCK.findall(page) if kind == language]


def test_the_pages_python_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = "from triton_rerank.testing import FakeScorer\n"
    for block in blocks(root, "python"):
        code = block.replace('TritonScorer("127.0.0.1:8001", "minilm-l6-demo")', "FakeScorer()")
        exec(compile(fake + code, "page", "exec"), {})
    shown = capsys.readouterr().out
    assert shown.startswith("8 ")
    assert "[1] gzip makes a file smaller" in shown


def test_the_pages_plan_is_one(root: Path, tmp_path: Path) -> None:
    (block,) = blocks(root, "toml")
    (tmp_path / "plan.toml").write_text(block)
    assert [system.name for system in read_plan(tmp_path / "plan.toml").systems] == ["whole"]


def rag(root: Path, repository: Path, model: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "examples" / "rag.py"), "which file takes less room on disk?"]
    options = ["--model-repository", str(repository), "--model", model]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAG_", "OPENAI_"))}
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=200, check=False, env={**plain, **environment}
    )


def test_the_example_answers_offline_and_cites_its_passage(root: Path, tiny_repository: Path) -> None:
    done = rag(root, tiny_repository, "tiny-bert")
    assert done.returncode == 0, done.stderr
    quoted, cited = done.stdout.split("\n\n")
    passage = cited.strip().removeprefix("[1] ")
    assert quoted.strip() == f"The best passage says: “{passage}” [1]"
    assert passage in (root / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines()


def test_the_example_asks_the_endpoint_of_the_environment(root: Path, tiny_repository: Path) -> None:
    with ChatEndpoint(lambda body: "It is so [2] and so [9].") as server:
        done = rag(root, tiny_repository, "tiny-bert", RAG_BASE_URL=server.url, RAG_MODEL="mine")
    assert done.returncode == 0, done.stderr
    assert asked(server.received[0])["question"] == "which file takes less room on disk?"
    assert "cites passages that are not there: (9,)" in done.stderr
