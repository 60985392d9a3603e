"""`make perf-smoke`: has anything become slower than it must be? And would this see it?

Ratios only, medians of alternating rounds within one run, with bounds that a regression breaks and other work on the
machine does not; a broken bound is measured again before it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support import speed_smoke as smoke
from support.graphs import checkpoint_of
from support.speed_smoke import FP32, INT8, OVERHEAD, SORTING, UNSORTED, Bound, measure

from triton_rerank import RerankClient
from triton_rerank.repository import Artefacts
from triton_rerank_bench.compare.contestants import IN_PROCESS, SERVED, Contestant
from triton_rerank_bench.machine import describe_machine
from triton_rerank_bench.served import read_model
from triton_rerank_export.graph import trace
from triton_rerank_export.graph.precision import convert
from triton_rerank_server import TritonServer
from triton_rerank_server.backends.encoder import engine

DEMO = "minilm-l6-demo"
pytestmark = pytest.mark.alone
SEED = 1


@pytest.fixture(scope="module")
def int8(model_repository: Path) -> Artefacts:
    return read_model(model_repository, DEMO)


@pytest.fixture(scope="module")
def fp32(int8: Artefacts, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    folder = tmp_path_factory.mktemp("fp32")
    checkpoint = checkpoint_of(checkpoints[DEMO])
    path = trace.export_graph(checkpoint, folder, cut_last_layer=True)
    whole = convert(path, "fp32", folder, family=checkpoint.family).path
    return replace(int8, info=replace(int8.info, precision="fp32"), encoder_file=whole)


@pytest.fixture(scope="module")
def everybody(server: TritonServer, int8: Artefacts, fp32: Artefacts) -> Iterator[dict[str, Contestant]]:
    with RerankClient(server.grpc_target, model=DEMO) as client:
        yield {contestant.name: contestant for contestant in smoke.contestants(client, int8, fp32)}


def test_nothing_is_slower_than_it_must_be(everybody: dict[str, Contestant]) -> None:
    verdicts = measure(list(everybody.values()), smoke.BOUNDS, n_rounds=5, seed=SEED, attempts=3)
    print(*verdicts, sep="\n")
    no_int8 = smoke.no_int8_here(describe_machine())
    assert not [str(verdict) for verdict in verdicts if not verdict.passed and not (no_int8 and verdict.bound is INT8)]
    if no_int8:
        pytest.skip(f"int8 over fp32 only: {no_int8}")


def seen(contestants: list[Contestant], bound: Bound) -> bool:
    """Is the bound broken, in one of three looks? Other work can hide a regression from one, as it can feign one."""
    for attempt in range(3):
        (verdict,) = measure(contestants, [bound], n_rounds=5, seed=SEED + attempt)
        print(verdict)
        if not verdict.passed:
            return True
    return False


class Twice:
    """Everything once more, as a second copy or a second look in its path would cost."""

    def __init__(self, contestant: Contestant) -> None:
        self.name = contestant.name
        self._contestant = contestant

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        self._contestant.scores(query, documents)
        return self._contestant.scores(query, documents)


def test_work_that_is_done_twice_in_the_served_path_is_seen(everybody: dict[str, Contestant]) -> None:
    assert seen([Twice(everybody[SERVED]), everybody[IN_PROCESS]], OVERHEAD)


def test_an_engine_that_does_not_sort_is_seen(
    everybody: dict[str, Contestant], monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_they_come(lengths: npt.NDArray[np.intp], budget: int, _: float, *, flat: bool) -> list[npt.NDArray[np.intp]]:
        rows = np.arange(len(lengths))
        return [rows[batch] for batch in smoke.in_order(lengths, budget)]

    monkeypatch.setattr(engine, "micro_batches", as_they_come)
    assert seen([everybody[IN_PROCESS], everybody[UNSORTED]], SORTING)


def test_fp32_that_is_served_as_int8_is_seen(everybody: dict[str, Contestant]) -> None:
    by_mistake = copy(everybody[FP32])
    by_mistake.name = IN_PROCESS
    assert seen([by_mistake, everybody[FP32]], INT8)
