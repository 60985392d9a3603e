"""A peer in a process of its own beside ours in a real Triton: the same texts, the same order, a report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from triton_rerank_bench import workloads
from triton_rerank_bench.compare import command as peers_command
from triton_rerank_bench.compare.catalogue import PEERS
from triton_rerank_bench.compare.contestants import InProcess
from triton_rerank_bench.compare.process import PeerProcess
from triton_rerank_bench.compare.race import kendall_tau
from triton_rerank_bench.served import read_model

MODEL = "tiny-bert"


def test_a_real_peer_in_its_process_scores_as_ours(tiny_repository: Path, checkpoints: dict[str, Path]) -> None:
    text = workloads.passages(1)
    ours = InProcess(read_model(tiny_repository, MODEL)).scores(text.query, text.documents)
    arguments = {"folder": str(checkpoints[MODEL]), "backend": "torch", "dtype": "float32"}
    with PeerProcess("torch", Path(sys.executable), n_threads=1) as peer:
        peer.load("sentence-transformers", {**arguments, "max_length": 128, "n_threads": 1})
        scores = peer.scores(text.query, text.documents, {"batch_size": 8})
    assert scores == pytest.approx(ours, abs=1e-4)
    assert kendall_tau(ours, scores) > 0.999


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    """The environment of these tests in place of sentence-transformers' own; the others are not there."""
    python = tmp_path / "environments" / "sentence-transformers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")  # a link would lose its packages
    python.chmod(0o755)
    return tmp_path / "environments"


def test_the_command_measures_what_is_there_and_says_what_is_not(
    tiny_repository: Path, checkpoints: dict[str, Path], environments: Path, tmp_path: Path
) -> None:
    parser = argparse.ArgumentParser()
    peers_command.add_arguments(parser)
    options = parser.parse_args(
        [
            *("--model-repository", str(tiny_repository), "--model", MODEL, "--checkpoint", str(checkpoints[MODEL])),
            *(
                "--environments",
                str(environments),
                "--cache",
                str(tmp_path / "cache"),
                "--output",
                str(tmp_path / "perf"),
            ),
            *("--quick", "--rounds", "1", "--only", "sentence-transformers torch fp32", "--only", "FlashR"),
        ]
    )
    console = Console(record=True, width=150)
    document, code = peers_command.run(options, console)
    assert code == 0
    assert document == json.loads((tmp_path / "perf" / "peers.json").read_text(encoding="utf-8"))
    (figures,) = cast(Any, document["workloads"])
    served, _, torch, _ = figures["rows"]
    assert torch["kendall_tau"] > 0.999
    assert torch["ratio"]["median"] > 0
    assert served["kendall_tau"] > 0.999
    assert figures["idle_share"] < 0.05
    assert list(figures["not_measured"]) == [peer.name for peer in PEERS if peer.name.startswith("FlashRank")]
    assert all("make perf-peers" in why for why in figures["not_measured"].values())
    assert "FlashRank: not measured: its environment" in console.export_text().replace("\n", " ")
    assert (tmp_path / "perf" / "peers.png").read_bytes().startswith(b"\x89PNG")
