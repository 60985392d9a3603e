"""Collections for `triton-rerank-bulk`, its command as a shell starts it, and what it wrote."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.serving import script
from support.tritons import NAME

from triton_rerank_bulk.cli import main

Row = dict[str, Any]


def write_collection(folder: Path, *, queries: int = 24, documents: int = 40, blank_query: bool = False) -> Path:
    """Short texts, and a run in which every query has every document; a blank query is the last."""
    folder.mkdir(parents=True)
    texts = [f"how do I make file {number} smaller?" for number in range(queries - blank_query)] + [" "] * blank_query
    lines = {
        "queries.jsonl": [json.dumps({"_id": f"q{number}", "text": text}) for number, text in enumerate(texts)],
        "corpus.jsonl": [
            json.dumps({"_id": f"d{number}", "title": "gzip" * (number % 2), "text": f"shrinks {number} files"})
            for number in range(documents)
        ],
        "run.trec": [
            f"q{query} Q0 d{document} {document + 1} {-document} bm25"
            for query in range(queries)
            for document in range(documents)
        ],
    }
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder


def command(source: Path, output: Path, *arguments: str) -> list[str]:
    """Small blocks, so that there are many."""
    fixed = ["--model", NAME, "--block-pairs", "60", "--timeout-s", "20"]
    return [script("triton-rerank-bulk"), "score", "--input", str(source), "--output", str(output), *fixed, *arguments]


def run(source: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """To its end, in this process: a command spends a second on importing."""
    said, complained = io.StringIO(), io.StringIO()
    line = command(source, output, *arguments)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main(line[1:])
    return subprocess.CompletedProcess(line, code, said.getvalue(), complained.getvalue())


def run_apart(
    source: Path, output: Path, *arguments: str, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """To its end, in a process of its own, behind a command that changes what it sees."""
    line = [*before, *command(source, output, *arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=280, check=False)


@contextlib.contextmanager
def running(source: Path, output: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Under way inside the block."""
    process = subprocess.Popen(
        command(source, output, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def parts(output: Path) -> list[Path]:
    """Blocks that are there."""
    return sorted(output.glob("part-*.parquet"))


def has_parts(output: Path, n: int) -> Callable[[], bool]:
    """Are so many there?"""
    return lambda: len(parts(output)) >= n


def rows(output: Path) -> list[Row]:
    """Of all blocks, in their order."""
    found: list[Row] = pa.concat_tables(pq.read_table(path) for path in parts(output)).to_pylist()
    return found


def audited(done: subprocess.CompletedProcess[str]) -> Row:
    """The last line of standard output."""
    assert done.stdout, done.stderr
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Of standard error, which holds lines of ours only."""
    lines = done.stderr.splitlines()
    assert all(line.startswith("triton-rerank-bulk: ") for line in lines), done.stderr
    return lines[-1].removeprefix("triton-rerank-bulk: ")
