"""What a client learns of a model while a server has its steps under names that are lent to them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.stand_in import StandIn, serve
from support.tritons import edited, only_bert, wait_until

from triton_rerank import RerankClient
from triton_rerank_export.repository import replacement

MODEL = "tiny-bert"
LADDER = (16, 128)  # of the new tokenizer


@pytest.fixture
def lent(tiny_repository: Path, tmp_path: Path) -> Iterator[Path]:
    """As a server sees a repository that is between the old steps and the new ones under their own names."""
    folder = only_bert(tiny_repository, tmp_path / "model_repository")
    with edited(folder / f"{MODEL}-tokenizer") as config:
        config.parameters["length_ladder"].string_value = ",".join(map(str, LADDER))
    for step in ("tokenizer", "encoder"):
        (folder / f"{MODEL}-{step}" / "1").rename(folder / f"{MODEL}-{step}" / "2")
    (folder / MODEL / "1").rename(folder / MODEL / "2")
    for model in (MODEL, f"{MODEL}-tokenizer", f"{MODEL}-encoder"):
        with edited(folder / model) as config:
            config.version_policy.specific.versions[:] = [2]
            for step in config.ensemble_scheduling.step:
                step.model_version = 2
    with replacement.lent_names(folder, MODEL):
        for step in ("tokenizer", "encoder"):
            shutil.rmtree(folder / f"{MODEL}-{step}")
        yield folder


@pytest.mark.parametrize("others", [0, 1])
def test_the_first_step_is_the_one_that_the_ensemble_names(tiny_repository: Path, lent: Path, others: int) -> None:
    """Another server, that was not told, has no such step."""
    with ExitStack() as stack:
        folders = [lent, *[tiny_repository] * others]
        servers = [stack.enter_context(serve(StandIn(folder))) for folder in folders]
        target = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        turns = itertools.count()
        seen: set[tuple[str, tuple[int, ...]]] = set()
        with RerankClient(target, model=MODEL, timeout_s=20.0) as client:

            def is_seen() -> bool:
                info = client.model_info()
                seen.add((info.version, info.length_ladder))
                for _ in range(next(turns) % 3):  # the servers are asked in turn
                    client.score("q", ["a"])
                return ("2", LADDER) in seen

            assert wait_until(is_seen, 20), seen
    assert seen <= {("1", (32, 64, 96, 128)), ("2", LADDER)}
