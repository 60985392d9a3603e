"""A served model beside sentence-transformers with the same weights on the same device, workload by workload."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_bench.compare.catalogue import Peer, on_device
from triton_rerank_bench.compare.contestants import SERVED, Contestant, Served, token_counts, tokenizer_of
from triton_rerank_bench.compare.process import PeerError
from triton_rerank_bench.compare.race import Race, WorkloadPeers
from triton_rerank_bench.compare.rounds import Ratio, ratio
from triton_rerank_bench.compare.search import PeerContestant, search
from triton_rerank_bench.compare.workers import Workers
from triton_rerank_bench.gpu.device import Device
from triton_rerank_bench.gpu.models import SHAPES, Prepared
from triton_rerank_bench.load.generator import Load, LoadFigures
from triton_rerank_bench.machine import OtherLoad, usable_cores
from triton_rerank_bench.progress import OnStep
from triton_rerank_bench.report import Json, target
from triton_rerank_bench.served import ServedModel, read_model
from triton_rerank_bench.tune.findings import Answer
from triton_rerank_bench.workloads import BY_NAME, Workload, token_statistics

DEFAULT_CONCURRENCIES = (1, 8, 32)
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1_024)
CAPACITY_WORKLOAD = "passages"
CAPACITY_ROUNDS = 3
WARM_UP_SHARE = 0.4  # of a level's seconds go before it
ORDER_SLACK = 0.02  # of Kendall's tau; random weights hold documents close, and both types swap some of them
GOAL_DEVICE = "H100"


@dataclass(frozen=True)
class Capacity:
    """Most pairs a second of each side, in turns: ours with callers side by side, the peer's in one call of all lists.

    The ratio is the peer's seconds a pair over ours, paired within rounds.
    """

    concurrency: int
    peer_setting: str
    served_pairs_per_s: list[float]
    peer_pairs_per_s: list[float]
    ratio: Ratio


@dataclass(frozen=True)
class WorkloadFigures:
    """One workload: one list at a time beside the peer, ours by callers, and both at their most pairs a second."""

    lists: WorkloadPeers
    levels: list[LoadFigures]
    capacity: Capacity | None


class SideBySide:
    """A served model and the peer with the same weights; a context manager that ends the peer's processes."""

    def __init__(
        self,
        model: Prepared,
        server: ServedModel,
        answer: Answer,
        device: Device,
        names: Sequence[str],
        options: argparse.Namespace,
        *,
        on_step: OnStep,
    ) -> None:
        self._model, self._server, self._options, self._on_step = model, server, options, on_step
        self._lists = {name: BY_NAME[name](options.seed) for name in names}
        self._client_options = answer.setting.client_options
        self._tokenizer = tokenizer_of(read_model(model.repository, model.shape))
        where = f"cuda:{options.device_id}" if device.kind == "cuda" else "cpu"
        self._peer = on_device(where, options.attention, sorted(options.batch_size or BATCH_SIZES))
        max_length = read_model(model.repository, model.shape).info.max_length
        self._workers = Workers(
            lambda _: Path(sys.executable),
            lambda _: model.checkpoint.resolve(),
            max_length=max_length,
            n_threads=usable_cores(),
        )
        self.other_load = OtherLoad()

    def __enter__(self) -> SideBySide:
        self._references = self._fp32()
        return self

    def __exit__(self, *exc: object) -> None:
        self._workers.__exit__(*exc)

    def measure(self, name: str) -> WorkloadFigures:
        """Figures of one workload.

        Raises:
            BenchError: the peer cannot be loaded.
            RerankError: the served model did not answer.
        """
        lists = self._lists[name]
        one = longest(lists)
        tokens = token_statistics(one, token_counts(self._tokenizer, one.query, one.documents))
        race = Race(
            [self._peer], one, tokens, self._references[name], self._workers,
            n_rounds=self._options.rounds, seed=self._options.seed, on_step=self._on_step,
        )  # fmt: skip
        ours: list[Contestant] = [Served(self._server.client)]
        found = race.run(ours, self.other_load)
        if race.interrupted or not found:
            raise KeyboardInterrupt
        load = Load(self._server, self._model.shape, lists, seed=self._options.seed, options=self._client_options)
        with closing(load):
            levels = [
                self._level(load, name, callers) for callers in self._options.concurrency or DEFAULT_CONCURRENCIES
            ]
            best = max(levels, key=lambda level: level.pairs_per_s)
            return WorkloadFigures(found[0], levels, self._capacity(load, best, lists))

    def _fp32(self) -> dict[str, list[float]]:
        """Scores of fp32 on the same device, gone again before anything is timed."""
        self._on_step(f"{self._model.shape}: sentence-transformers fp32, for reference")
        fp32, setting = {**self._peer.load, "dtype": "float32"}, self._peer.settings[0]
        peer = dataclasses.replace(self._peer, name="fp32", load=fp32)
        process, _ = self._workers.get(peer, setting)
        lists = {name: longest(lists) for name, lists in self._lists.items()}
        scores = {name: process.scores(one.query, one.documents, setting.options) for name, one in lists.items()}
        self._workers.drop(peer, setting)
        return scores

    def _level(self, load: Load, name: str, callers: int) -> LoadFigures:
        self._on_step(f"{self._model.shape}, {name}: {callers} callers")
        return load.closed(callers, self._options.level_s, WARM_UP_SHARE * self._options.level_s)

    def _capacity(self, load: Load, best: LoadFigures, lists: Sequence[Workload]) -> Capacity | None:
        """Ours under its best load, then all lists in one call of the peer, in turns: each has the device alone."""
        peer, bulk = everything(self._peer, lists)
        callers, n_pairs, clock = best.concurrency or 1, len(bulk.documents), time.perf_counter
        try:
            found = search(peer, peer.settings, bulk, range(n_pairs), self._workers, on_step=self._on_step, clock=clock)
        except PeerError:
            return None
        tuned = PeerContestant(peer, found.best.setting, self._workers.get(peer, found.best.setting)[0])
        a_pair: dict[str, list[float]] = {SERVED: [], tuned.name: []}  # seconds, one a round
        for _ in range(CAPACITY_ROUNDS):
            a_pair[SERVED].append(1 / self._level(load, best.workload, callers).pairs_per_s)
            start = clock()
            tuned.scores(bulk.query, bulk.documents)
            a_pair[tuned.name].append((clock() - start) / n_pairs)
        return capacity(callers, tuned.name, a_pair)


def longest(lists: Sequence[Workload]) -> Workload:
    """The list with most documents; the first of several."""
    return max(lists, key=lambda texts: len(texts.documents))


def everything(peer: Peer, lists: Sequence[Workload]) -> tuple[Peer, Workload]:
    """All lists as one, each pair with its own query, and the peer that is asked for it."""
    queries = [texts.query for texts in lists for _ in texts.documents]
    settings = tuple(dataclasses.replace(each, options={**each.options, "queries": queries}) for each in peer.settings)
    documents = [document for texts in lists for document in texts.documents]
    return dataclasses.replace(peer, settings=settings), Workload(f"{lists[0].name}, all lists", "", documents, calls=1)


def capacity(callers: int, peer: str, a_pair: Mapping[str, Sequence[float]]) -> Capacity:
    """Sum up alternating rounds: of each side the seconds a pair, one a round."""
    served, theirs = ([1 / each for each in a_pair[name]] for name in (SERVED, peer))
    return Capacity(callers, peer, served, theirs, ratio(peer, SERVED, a_pair))


def judge(shape: str, device: Device, figures: Sequence[WorkloadFigures]) -> list[Json]:
    """Hold figures against the targets. Speed is judged on GPUs only, the project's goal on the one it was set for."""
    nearer = [  # to fp32's order than the peer's default, which is meaningless for one document
        each.lists.our_kendall_tau - peer.default.kendall_tau
        for each in figures
        for peer in each.lists.peers
        if peer.default and each.lists.tokens.pairs > 1
    ]
    what = "order beside fp32's, Kendall tau over that of sentence-transformers bf16"
    found = [target(what, min(nearer, default=0.0), at_least=-ORDER_SLACK, judged=bool(nearer))]
    most = next((each.capacity for each in figures if each.lists.workload == CAPACITY_WORKLOAD), None)
    if most is None:
        return found
    on_a_gpu, goal = device.kind == "cuda", SHAPES[shape].h100_pairs_per_s
    what = f"served over {most.peer_setting}, pairs/s, {CAPACITY_WORKLOAD}"
    found.append(target(what, most.ratio.median, at_least=1, judged=on_a_gpu))
    if goal is not None:
        what, best = f"pairs/s on one {GOAL_DEVICE}, {CAPACITY_WORKLOAD}", statistics.median(most.served_pairs_per_s)
        found.append(target(what, best, at_least=goal, judged=on_a_gpu and GOAL_DEVICE in device.name))
    return found
