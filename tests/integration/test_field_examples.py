"""The examples of the field, as a user runs them: real libraries, a real Triton, the demo model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triton_rerank import RerankClient
from triton_rerank_server import TritonServer

QUERY = "how do I make a file smaller?"
TIMEOUT_S = 250  # frameworks and a bi-encoder are imported, on busy cores
SCORED = re.compile(r"(\d\.\d{3})  (?:line \d+: )?(.+)")


def run(root: Path, name: str, target: str, *arguments: str) -> str:
    command = [sys.executable, str(root / "examples" / name), "--target", target, *arguments]
    quiet = {"HAYSTACK_TELEMETRY_ENABLED": "False", "LANGSMITH_TRACING": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env={**os.environ, **quiet}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def scored(shown: str) -> list[tuple[float, str]]:
    return [(float(score), text) for score, text in SCORED.findall(shown)]


def is_what_the_client_says(found: list[tuple[float, str]], client: RerankClient) -> None:
    """Best first, with the model's own scores; in int8, who shares a batch moves scores a little."""
    texts = [text for _, text in found]
    scores = [score for score, _ in found]
    assert len(found) == 3
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx(list(client.score(QUERY, texts)), abs=0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["langchain_faiss.py", "llama_index_engine.py", "haystack_pipeline.py"])
def test_a_framework_ranks_by_the_served_model(
    root: Path, server: TritonServer, demo_client: RerankClient, passages: list[str], name: str
) -> None:
    shown = run(root, name, server.grpc_target, QUERY)
    found = scored(shown)[:3]
    is_what_the_client_says(found, demo_client)
    assert found[0][1] == passages[1]
    last = {"langchain_faiss.py": "As the passages say.", "llama_index_engine.py": "Answer: "}
    assert shown.rstrip("\n").splitlines()[-1] == last.get(name, f"Question: {QUERY}")


@pytest.mark.timeout(300)
def test_two_stages_and_a_hybrid_first_stage(
    root: Path, server: TritonServer, demo_client: RerankClient, passages: list[str]
) -> None:
    two_stage, hybrid = run(root, "hybrid.py", server.grpc_target, QUERY).split("BM25 and dense, fused, reranked: ")
    for found in (scored(two_stage), scored(hybrid)):
        is_what_the_client_says(found, demo_client)
        assert found[0][1] == passages[1]
    assert "bm25: rank 5, rerank: rank 1" in two_stage
    assert two_stage.startswith("BM25, reranked: 5 candidates")  # that share a word with the query
    assert hybrid.startswith(f"{len(passages)} candidates")
    assert re.search(r"dense: rank \d+, rrf: rank \d+, rerank: rank 1$", hybrid, re.MULTILINE)


def test_many_queries_get_each_its_own_answer(
    root: Path, server: TritonServer, passages: list[str], example_queries: list[dict[str, Any]]
) -> None:
    batch, apart = run(root, "many_queries.py", server.grpc_target).split("requests of two callers")
    for example in example_queries:
        assert f"{example['query']} -> {passages[example['answer']]} (0 pairs" in batch
    ann, bob = apart.strip().splitlines()[1:]
    assert ann.startswith(f"  ann -> {passages[1]}")
    assert bob.startswith("  bob -> ")
    assert passages[1] not in bob
    assert "(0 pairs" not in ann


def test_bands_and_a_threshold_say_how_sure_the_model_is(
    root: Path, server: TritonServer, demo_client: RerankClient, passages: list[str]
) -> None:
    scores = demo_client.score(QUERY, passages)
    for bound in (0.0, 0.7, 2.0):
        *shown, last = run(root, "confidence.py", server.grpc_target, QUERY, f"--min-score={bound}").splitlines()
        assert last == f"{len(passages) - len(shown)} of {len(passages)} left out"
        assert len(shown) == sum(score >= bound for score in scores)
        for line in shown:
            band, score, text = line.split(maxsplit=2)
            assert text in passages
            told = float(score)  # rounded, so that one at a border may stand on either side of it
            bands = {
                "high" if near >= 0.85 else "medium" if near >= 0.75 else "low" for near in (told - 5e-4, told + 5e-4)
            }
            assert band in bands
