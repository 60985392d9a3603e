"""One model on a device: tuned, served with what was found, beside sentence-transformers with the same weights."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from triton_rerank_bench.compare.catalogue import Peer, on_device
from triton_rerank_bench.compare.contestants import SERVED, Served, token_counts, tokenizer_of
from triton_rerank_bench.compare.process import Workers
from triton_rerank_bench.compare.race import PeerContestant, Race, WorkloadPeers, reference_scores, search
from triton_rerank_bench.compare.rounds import Ratio, ratio
from triton_rerank_bench.errors import PeerError
from triton_rerank_bench.gpu.device import Device, memory_used_mib
from triton_rerank_bench.gpu.models import SHAPES, Prepared
from triton_rerank_bench.load.generator import Load, LoadFigures
from triton_rerank_bench.machine import usable_cores
from triton_rerank_bench.progress import OnStep
from triton_rerank_bench.report import Json, target
from triton_rerank_bench.served import read_model, serve
from triton_rerank_bench.tune.command import ground_of, tune
from triton_rerank_bench.tune.findings import Answer, Schedule, Tuning, Wanted
from triton_rerank_bench.tune.knobs import KNOBS, on_cpu, on_gpu
from triton_rerank_bench.tune.servers import SettingServers
from triton_rerank_bench.tune.variants import Configs, config_diff, variant
from triton_rerank_bench.workloads import BY_NAME, Workload, token_statistics

CAPACITY_WORKLOAD = "passages"
CAPACITY_ROUNDS = 3
MEMORY_CALLS = 3  # untimed calls of each workload before memory is read
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


@dataclass
class ModelFigures:
    """One model; device memory is in MiB, None on a CPU, and counts what was not taken before."""

    shape: str
    weights: str
    precision: str
    max_length: int
    tuning: Tuning
    answer: Answer
    config_change: str
    triton_version: str | None = None
    workloads: list[WorkloadFigures] = field(default_factory=list)
    server_mib: int | None = None
    peer_mib: int | None = None
    other_load: float = 0.0
    targets: list[Json] = field(default_factory=list)


def measure_model(
    model: Prepared, precision: str, device: Device, options: argparse.Namespace, *, on_step: OnStep
) -> ModelFigures:
    """Find the fastest setting, serve it, and measure it beside the peer.

    Raises:
        BenchError: a figure cannot be had. ServerStartError: the first setting did not start.
        RerankError: the served model did not answer. KeyboardInterrupt: nothing of this model is kept.
    """
    shape, place = model.shape, on_gpu if device.kind == "cuda" else on_cpu
    with variant(model.repository, shape, place) as repository:
        tuning = _tune(repository, shape, device, options, on_step)
    answer = tuning.answer()
    if answer is None or tuning.interrupted:
        raise KeyboardInterrupt

    def change(configs: Configs) -> None:
        """Place the steps on the device, then set what was found best."""
        place(configs)
        answer.setting.change(configs)

    def memory() -> int | None:
        """MiB that are taken of the device; None on a CPU, and where nobody tells."""
        return memory_used_mib(options.device_id) if device.kind == "cuda" else None

    files = read_model(model.repository, shape)
    diff = config_diff(model.repository, shape, change)
    figures = ModelFigures(shape, model.weights, precision, files.info.max_length, tuning, answer, diff)
    lists = {name: BY_NAME[name](options.seed) for name in options.workload}
    texts = {name: longest(each) for name, each in lists.items()}
    peer = on_device(device.torch_name(options.device_id), options.attention, sorted(options.batch_size))
    workers = Workers(
        lambda _: (Path(sys.executable), model.checkpoint.resolve()),
        max_length=files.info.max_length,
        n_threads=usable_cores(),
    )
    race, tokenizer = Race([peer], workers, options.rounds, options.seed, on_step), tokenizer_of(files)
    before = memory()
    with (
        variant(model.repository, shape, change) as repository,
        serve(repository, shape, on_progress=on_step) as server,
        workers,
    ):
        figures.triton_version = server.triton_version
        for each in (each for of_name in lists.values() for each in of_name[:MEMORY_CALLS]):
            server.client.score(each.query, each.documents)  # so that it has its memory before the peer is loaded
        with_server = memory()
        references = reference_scores(peer, {"dtype": "float32"}, list(texts.values()), workers, on_step)
        for name, one in texts.items():
            tokens = token_statistics(one, token_counts(tokenizer, one.query, one.documents))
            found = race.run([Served(server.client)], one, tokens, references[one.name])
            if race.interrupted or found is None:
                raise KeyboardInterrupt
            turns = Turns(Load(server, shape, lists[name], seed=options.seed, options=answer.setting.client_options),
                          options.level_s, on_step)  # fmt: skip
            with closing(turns.load):
                levels = [turns.level(callers) for callers in options.concurrency]
                figures.workloads.append(
                    WorkloadFigures(found, levels, turns.capacity(levels, peer, lists[name], workers))
                )
        if before is not None and with_server is not None and (with_peer := memory()) is not None:
            figures.server_mib, figures.peer_mib = with_server - before, with_peer - with_server
    figures.other_load, figures.targets = race.load.share(), judge(shape, device, figures.workloads)
    return figures


@dataclass
class Turns:
    """Levels of load of one workload, and the peer in between; each level takes some seconds and its warm-up."""

    load: Load
    level_s: float
    on_step: OnStep

    def level(self, callers: int) -> LoadFigures:
        """Ours with so many callers side by side."""
        self.on_step(f"served, {callers} callers")
        return self.load.closed(callers, self.level_s, WARM_UP_SHARE * self.level_s)

    def capacity(
        self, levels: Sequence[LoadFigures], peer: Peer, lists: Sequence[Workload], workers: Workers
    ) -> Capacity | None:
        """Ours under its best load, then all lists in one call of the peer, in turns: each has the device alone.

        None where the peer cannot be asked so.
        """
        callers = max(levels, key=lambda level: level.pairs_per_s).concurrency or 1
        asked, bulk = everything(peer, lists)
        n_pairs, clock = len(bulk.documents), time.perf_counter
        try:
            found = search(asked, asked.settings, bulk, range(n_pairs), workers, on_step=self.on_step, clock=clock)
        except PeerError:
            return None
        tuned = PeerContestant(asked, found.best.setting, workers.get(asked, found.best.setting)[0])
        a_pair: dict[str, list[float]] = {SERVED: [], tuned.name: []}  # seconds, one a round
        for _ in range(CAPACITY_ROUNDS):
            a_pair[SERVED].append(1 / self.level(callers).pairs_per_s)
            start = clock()
            tuned.scores(bulk.query, bulk.documents)
            a_pair[tuned.name].append((clock() - start) / n_pairs)
        return capacity(callers, tuned.name, a_pair)


def _tune(repository: Path, shape: str, device: Device, options: argparse.Namespace, on_step: OnStep) -> Tuning:
    lists = BY_NAME[CAPACITY_WORKLOAD](options.seed)
    on = ground_of(shape, repository, shape, lists, has_gpu=device.kind == "cuda")
    servers = SettingServers({shape: repository}, shape, lists, seed=options.seed, on_progress=on_step)
    wanted, schedule = Wanted(None, None, tuple(KNOBS)), Schedule.of(60 * options.minutes)
    return tune(servers, {shape: on}, wanted, schedule, lists, on_step=on_step)


def longest(lists: Sequence[Workload]) -> Workload:
    """The list with most documents; the first of several."""
    return max(lists, key=lambda texts: len(texts.documents))


def everything(peer: Peer, lists: Sequence[Workload]) -> tuple[Peer, Workload]:
    """All lists as one, each pair with its own query, and the peer that is asked for it."""
    queries = [texts.query for texts in lists for _ in texts.documents]
    settings = tuple(replace(each, options={**each.options, "queries": queries}) for each in peer.settings)
    documents = [document for texts in lists for document in texts.documents]
    return replace(peer, settings=settings), Workload(f"{lists[0].name}, all lists", "", documents, calls=1)


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
