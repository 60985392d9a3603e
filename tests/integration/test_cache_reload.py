"""A cache in front of a real server whose model is replaced, taken away and brought back."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tritons import EXPLICIT, start

from triton_rerank import RerankClient
from triton_rerank.cache.scorer import CachedScorer
from triton_rerank.cascade import CascadeScorer
from triton_rerank.errors import RerankError
from triton_rerank.triton.scorer import TritonScorer
from triton_rerank_export.cli import main
from triton_rerank_export.repository import store
from triton_rerank_server import TritonServer

NAME = "tiny-bert"
QUERY = "how to zip a file"
DOCUMENTS = [f"{text} {number}" for number in range(8) for text in ("gzip shrinks files", "the cat sat on the mat")]


@pytest.fixture
def folder(two_versions: Path, tmp_path: Path) -> Path:
    """Version 1 is active; version 2 has logits 3 higher."""
    folder = Path(shutil.copytree(two_versions, tmp_path / "model_repository"))
    store.activate(folder, NAME, 1)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[TritonServer]:
    with start(folder, *EXPLICIT) as running:
        yield running


def activate(folder: Path, server: TritonServer, version: int) -> None:
    arguments = ["--model-repository", str(folder), "--version", str(version), "--target", server.grpc_target]
    assert main(["activate", "--model", NAME, *arguments]) == 0


def logits(client: RerankClient, documents: list[str]) -> tuple[dict[str, float], str, int]:
    result = client.rerank(QUERY, documents, timeout_s=20.0)
    found = {ranked.document: ranked.logit for ranked in result if ranked.logit is not None}
    return found, result.model_version, result.usage.cached_pairs


@pytest.mark.parametrize("revalidate_s", [0.0, 1000.0])
def test_a_new_version_empties_the_cache(folder: Path, server: TritonServer, revalidate_s: float) -> None:
    cached = CachedScorer(TritonScorer(server.grpc_target, NAME), revalidate_s=revalidate_s)
    with RerankClient(scorer=cached) as client:
        old, version, hits = logits(client, DOCUMENTS[:8])
        assert (version, hits) == ("1", 0)
        assert logits(client, DOCUMENTS[:8]) == (old, "1", 8)
        activate(folder, server, 2)
        new, version, hits = logits(client, DOCUMENTS[:12])
        assert (version, hits) == ("2", 0)
        assert all(abs(new[document] - old[document] - 3.0) < 0.01 for document in DOCUMENTS[:8])
        assert logits(client, DOCUMENTS[:12]) == (new, "2", 12)
        assert cached.counters().drops == 8


def test_under_load_no_answer_mixes_versions(folder: Path, server: TritonServer) -> None:
    truth: dict[str, dict[str, float]] = {}
    with RerankClient(server.grpc_target, model=NAME) as client:
        truth["1"] = logits(client, DOCUMENTS)[0]
        activate(folder, server, 2)
        truth["2"] = logits(client, DOCUMENTS)[0]
        activate(folder, server, 1)
    stop, faults, seen = threading.Event(), [], set()

    cached = CachedScorer(TritonScorer(server.grpc_target, NAME), revalidate_s=0.05, max_pairs=12)
    with RerankClient(scorer=cached) as client:

        def ask(start: int) -> None:
            while not stop.is_set():
                start = (start + 3) % 10
                try:
                    found, version, _ = logits(client, DOCUMENTS[start : start + 6])
                except RerankError as exc:
                    faults.append(repr(exc))
                    return
                seen.add(version)
                if any(abs(logit - truth[version][document]) > 0.01 for document, logit in found.items()):
                    faults.append(f"{version}: {found}")

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for version in (2, 1, 2):
            time.sleep(0.5)
            activate(folder, server, version)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join(30)
    assert faults == []
    assert seen == {"1", "2"}
    assert cached.counters().drops > 0
    assert cached.counters().hits > 0


def test_pairs_outlive_the_server(folder: Path) -> None:
    with start(folder, *EXPLICIT) as server:
        client = RerankClient(scorer=CachedScorer(TritonScorer(server.grpc_target, NAME), revalidate_s=0.0))
        before = logits(client, DOCUMENTS[:4])[0]
    with client:
        assert logits(client, DOCUMENTS[:4]) == (before, "1", 4)
        with pytest.raises(RerankError) as failed:
            client.rerank(QUERY, DOCUMENTS[:5], timeout_s=2.0)
        assert failed.value.falls_back


def test_a_cascade_of_two_models(server: TritonServer) -> None:
    light, heavy = TritonScorer(server.grpc_target, "tiny-bert"), TritonScorer(server.grpc_target, "tiny-xlmr")
    with (
        RerankClient(scorer=CascadeScorer(light, heavy, keep=5)) as client,
        RerankClient(server.grpc_target, model="tiny-bert") as by_light,
        RerankClient(server.grpc_target, model="tiny-xlmr") as by_heavy,
    ):
        result = client.rerank(QUERY, DOCUMENTS)
        first = [ranked.index for ranked in by_light.rerank(QUERY, DOCUMENTS)]
        kept = sorted(first[:5])
        second = [kept[ranked.index] for ranked in by_heavy.rerank(QUERY, [DOCUMENTS[index] for index in kept])]
    assert [ranked.index for ranked in result] == second + first[5:]
    assert [ranked.score is None for ranked in result] == [False] * 5 + [True] * 11
    assert result.model == "tiny-xlmr"
    assert [[stage.model for stage in ranked.stages] for ranked in result] == [
        *([["tiny-bert", "tiny-xlmr"]] * 5),
        *([["tiny-bert"]] * 11),
    ]
