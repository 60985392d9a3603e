"""What `triton-rerank-bulk` adds to a plain loop of the client over the same pairs, audit included."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.bulk import audited, run

from triton_rerank import RerankClient, RerankResult
from triton_rerank_server import TritonServer

DEMO = "minilm-l6-demo"
pytestmark = pytest.mark.alone
N_PAIRS = int(os.environ.get("BULK_PAIRS", "300"))
ROUNDS = int(os.environ.get("BULK_ROUNDS", "3"))
BOUND = 0.10  # of a short run: what is done once for a job counts too; docs/results.md has a longer one
DOCUMENTS = 100
CALLERS = 2  # one computes, one waits: a plain loop has no answer to a full queue


def write(folder: Path, passages: list[str], queries: list[str]) -> Path:
    """Every query with a hundred pairs of passages, and as many queries as are needed."""
    folder.mkdir()
    lines: dict[str, list[Any]] = {"queries.jsonl": [], "corpus.jsonl": [], "run.trec": []}
    texts = [" ".join(each) for each in product(passages, repeat=2)]
    lines["corpus.jsonl"] = [json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(texts)]
    for number in range(-(-N_PAIRS // DOCUMENTS)):
        text = f"{queries[number % len(queries)]} ({number})"
        lines["queries.jsonl"].append(json.dumps({"_id": f"q{number}", "text": text}))
        for rank in range(min(DOCUMENTS, N_PAIRS - number * DOCUMENTS)):
            lines["run.trec"].append(f"q{number} Q0 d{(number * 7 + rank) % len(texts)} {rank + 1} {-rank} first")
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder


def plain_loop(source: Path, target: str) -> float:
    """Seconds that a script of one's own takes: it reads the files, asks, and keeps nothing."""
    started = time.perf_counter()
    texts = {
        row["_id"]: row["text"]
        for name in ("queries.jsonl", "corpus.jsonl")
        for row in map(json.loads, (source / name).read_text(encoding="utf-8").splitlines())
    }
    lists: dict[str, list[str]] = {}
    for line in (source / "run.trec").read_text(encoding="utf-8").splitlines():
        query, _, document, *_ = line.split()
        lists.setdefault(query, []).append(texts[document])
    with RerankClient(target, model=DEMO) as client:
        results = client.rerank_many(
            [texts[query] for query in lists], lists.values(), concurrency=CALLERS, timeout_s=3600.0
        )
    assert sum(len(result) for result in results if isinstance(result, RerankResult)) == N_PAIRS
    return time.perf_counter() - started


def bulk(output: Path, source: Path, target: str) -> float:
    """Seconds of the whole command but for starting Python."""
    started = time.perf_counter()
    done = run(source, output, "--target", target, "--model", DEMO, "--concurrency", str(CALLERS))
    assert audited(done)["clean"], done.stderr
    return time.perf_counter() - started


def cpu_seconds(server: TritonServer) -> float:
    """Of Triton and its backends so far."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return float(sum(sum(process.cpu_times()[:2]) for process in family))


def test_the_command_costs_little_more_than_a_plain_loop(
    server: TritonServer, passages: list[str], example_queries: list[dict[str, Any]], tmp_path: Path
) -> None:
    """By processor time, which other work on the machine does not change; seconds are printed beside it."""
    source = write(tmp_path / "source", passages, [row["query"] for row in example_queries])
    added, ratios = [], []
    plain_loop(source, server.grpc_target)  # both are warm
    for number in range(ROUNDS):
        seconds, ours, theirs = {}, {}, {}
        for turn in ("plain", "bulk") if number % 2 else ("bulk", "plain"):
            run_once = plain_loop if turn == "plain" else partial(bulk, tmp_path / f"output-{number}")
            before = time.process_time(), cpu_seconds(server)
            seconds[turn] = run_once(source, server.grpc_target)
            ours[turn], theirs[turn] = time.process_time() - before[0], cpu_seconds(server) - before[1]
        added.append((ours["bulk"] - ours["plain"]) / (ours["plain"] + theirs["plain"]))
        ratios.append(seconds["bulk"] / seconds["plain"])
        for turn, took in seconds.items():
            print(f"{turn}: {took:.2f} s, CPU of the caller {ours[turn]:.3f} s, of the server {theirs[turn]:.1f} s")
    print(
        f"added by bulk, of a plain loop's CPU: median {np.median(added):.2%} ({min(added):.2%} to {max(added):.2%}); "
        f"seconds over seconds: {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    assert np.median(added) <= BOUND
