"""``triton-rerank-bench gpu``: the served model on a GPU, beside sentence-transformers on the same one.

Each shape is tuned as `perf` does it, then served with the setting that was found, and raced as `peers` does it. The
peer computes in the worker process of every other peer, on the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from triton_rerank_bench.compare.catalogue import Peer, on_device
from triton_rerank_bench.compare.command import workload_table
from triton_rerank_bench.compare.contestants import SERVED, Contestant, Served, token_counts, tokenizer_of
from triton_rerank_bench.compare.process import PeerError
from triton_rerank_bench.compare.race import Race, WorkloadPeers
from triton_rerank_bench.compare.rounds import Ratio, ratio
from triton_rerank_bench.compare.search import PeerContestant, search
from triton_rerank_bench.compare.workers import Workers
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.gpu import device as devices
from triton_rerank_bench.gpu.device import Device
from triton_rerank_bench.gpu.models import DEFAULT_SHAPES, SHAPES, Prepared, check_shape, prepare
from triton_rerank_bench.load.generator import Load, LoadFigures
from triton_rerank_bench.machine import OtherLoad, usable_cores
from triton_rerank_bench.options import DEFAULT_SEED, positive, seconds, whole
from triton_rerank_bench.progress import OnStep, showing_time_left
from triton_rerank_bench.report import LOUD, Json, Report, Table, missed, others, target, targets, text
from triton_rerank_bench.served import ServedModel, read_model, serve
from triton_rerank_bench.tune.answer import setting_text
from triton_rerank_bench.tune.command import tune
from triton_rerank_bench.tune.findings import Answer, Schedule, Tuning, Wanted
from triton_rerank_bench.tune.knobs import KNOBS, ground, on_cpu, on_gpu
from triton_rerank_bench.tune.report import tables
from triton_rerank_bench.tune.servers import SettingServers
from triton_rerank_bench.tune.variants import Configs, config_diff, read_configs, variant
from triton_rerank_bench.workloads import BY_NAME, Workload, token_statistics

DEFAULT_CONCURRENCIES = (1, 8, 32)
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1_024)
PRECISIONS = {"cuda": "fp16", "cpu": "fp32"}
CAPACITY_WORKLOAD = "passages"
CAPACITY_ROUNDS = 3
WARM_UP_SHARE = 0.4  # of a level's seconds go before it
ORDER_SLACK = 0.02  # of Kendall's tau; random weights hold documents close, and both types swap some of them
GOAL_DEVICE = "H100"
MEMORY_CALLS = 3  # untimed calls of each workload before memory is read

_LEVELS = {
    "callers": "concurrency", "pairs/s": "pairs_per_s:,.1f", "tokens/s": "tokens_per_s:,.0f",
    "p50 ms": "latency.p50_ms:,.2f", "p99 ms": "latency.p99_ms:,.2f", "rows/execution": "rows_per_execution:.1f",
    "padded/real": "padded_over_real:.2f", "failed": "failed",
}  # fmt: skip


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that may be chosen."""
    add, each = parser.add_argument, "repeatable; default"
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    add("--device-id", type=whole, default=0, help="GPU, as nvidia-smi counts (default %(default)s)")
    add("--shape", action="append", choices=list(SHAPES), help=f"{each} {', '.join(DEFAULT_SHAPES)}")
    weights = "trained weights of a shape; repeatable; a shape without them gets random ones"
    add("--checkpoint", action="append", default=[], metavar="SHAPE=FOLDER", help=weights)
    add("--workload", action="append", help=f"of {', '.join(BY_NAME)}; {each} all")
    add("--minutes", type=seconds, default=5.0, help="of the search for a model's setting (default %(default)g)")
    add("--rounds", type=positive, default=15, help="of single lists (default %(default)s)")
    add("--level-s", type=seconds, default=5.0, help="seconds of each level of load (default %(default)s)")
    callers = ", ".join(map(str, DEFAULT_CONCURRENCIES))
    add("--concurrency", type=positive, action="append", help=f"callers at a level; {each} {callers}")
    attention = "that sentence-transformers uses; flash_attention_2 needs flash-attn (default %(default)s)"
    add("--attention", default="sdpa", help=attention)
    sizes = ", ".join(map(str, BATCH_SIZES))
    add("--batch-size", type=positive, action="append", help=f"of sentence-transformers; {each} {sizes}")
    add("--work", type=Path, default=Path(".cache/gpu"), help="for models, several GB (default %(default)s)")
    add("--check", action="store_true", help="exit with 1 if a target is missed")
    add("--seed", type=int, default=DEFAULT_SEED, help="of the texts and of the turns (default %(default)s)")
    add("--output", type=Path, help="write the report there as JSON")


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Measure every shape; Ctrl-C keeps those that are done.

    Returns:
        The report, and 130 after Ctrl-C, 1 if ``--check`` is given and a target was missed, else 0.

    Raises:
        BenchError: a wrong option, something that the device needs is missing, or a figure cannot be had.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    checkpoints, names = _checkpoints(options.checkpoint), _workloads(options.workload)
    device = devices.describe(options.device, options.device_id)
    for line in device.lines():
        console.print(line.removeprefix(LOUD), style="red" if line.startswith(LOUD) else None, highlight=False)
    models, interrupted = _measure(options, checkpoints, names, device, console)
    given = ("minutes", "rounds", "level_s", "concurrency", "attention", "batch_size", "seed")
    settings: Json = {**{name: getattr(options, name) for name in given}, "interrupted": interrupted}
    version = models[0].triton_version if models else None
    report = Report("gpu", version, settings, {"device": device, "models": models}, [])
    judged = [row for model in models for row in model.targets]
    return report.json(), INTERRUPTED if interrupted else int(options.check and missed(judged))


def _measure(
    options: argparse.Namespace,
    checkpoints: dict[str, Path],
    names: Sequence[str],
    device: Device,
    console: Console,
) -> tuple[list[ModelFigures], bool]:
    models: list[ModelFigures] = []
    try:
        for shape in dict.fromkeys(options.shape or DEFAULT_SHAPES):
            with showing_time_left() as on_step:
                precision = PRECISIONS[options.device]
                prepared = prepare(shape, checkpoints.get(shape), options.work, precision, on_step=on_step)
                models.append(measure_model(prepared, precision, device, names, options, on_step=on_step))
            model_report(models[-1]).print(console)
    except KeyboardInterrupt:
        if not models:
            raise KeyboardInterrupt("before the first model was measured; nothing is kept") from None
        console.print("interrupted: the report holds the models above")
        return models, True
    return models, False


def measure_model(
    model: Prepared,
    precision: str,
    device: Device,
    names: Sequence[str],
    options: argparse.Namespace,
    *,
    on_step: OnStep,
) -> ModelFigures:
    """Find the fastest setting, serve it, and measure it beside the peer.

    Raises:
        BenchError: a figure cannot be had. ServerStartError: the first setting did not start.
        RerankError: the served model did not answer.
    """
    shape, place = model.shape, on_gpu if device.kind == "cuda" else on_cpu
    with variant(model.repository, shape, place) as repository:
        tuning = _tune(repository, shape, device, options, on_step)
    answer = tuning.answer()
    if answer is None or tuning.interrupted:
        raise KeyboardInterrupt

    def change(configs: Configs) -> None:
        place(configs)
        answer.setting.change(configs)

    max_length = read_model(model.repository, shape).info.max_length
    diff = config_diff(model.repository, shape, change)
    figures = ModelFigures(shape, model.weights, precision, max_length, tuning, answer, diff)
    before = devices.memory_used_mib(device.kind, options.device_id)
    with (
        variant(model.repository, shape, change) as repository,
        serve(repository, shape, on_progress=on_step) as server,
    ):
        figures.triton_version = server.triton_version
        for name in names:  # so that the server has taken its memory before the peer is loaded
            for texts in BY_NAME[name](options.seed)[:MEMORY_CALLS]:
                server.client.score(texts.query, texts.documents)
        with_server = devices.memory_used_mib(device.kind, options.device_id)
        with SideBySide(model, server, answer, device, names, options, on_step=on_step) as sides:
            figures.workloads += [sides.measure(name) for name in names]
            with_peer = devices.memory_used_mib(device.kind, options.device_id)
        figures.other_load = sides.other_load.share()
    if before is not None and with_server is not None and with_peer is not None:
        figures.server_mib, figures.peer_mib = with_server - before, with_peer - with_server
    figures.targets = judge(shape, device, figures.workloads)
    return figures


def _tune(repository: Path, shape: str, device: Device, options: argparse.Namespace, on_step: OnStep) -> Tuning:
    lists = BY_NAME[CAPACITY_WORKLOAD](options.seed)
    most = max(len(texts.documents) for texts in lists)
    on = ground(
        shape, read_configs(repository, shape), cores=usable_cores(), has_gpu=device.kind == "cuda", most_pairs=most
    )
    servers = SettingServers({shape: repository}, shape, lists, seed=options.seed, on_progress=on_step)
    wanted, schedule = Wanted(None, None, tuple(KNOBS)), Schedule.of(60 * options.minutes)
    return tune(servers, {shape: on}, wanted, schedule, lists, on_step=on_step)


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


def model_report(model: ModelFigures) -> Report:
    """What was found of one model."""
    setting = setting_text(model.answer.setting, model.answer.exported)
    parts: list[str | Table] = [
        f"{model.shape}, weights: {model.weights}, {model.precision} beside bf16, max_length {model.max_length}, "
        f"Triton {model.triton_version}; served with {setting}",
        others(model.other_load),
        *tables(model.tuning),
    ]
    for each in model.workloads:
        rows = [{**vars(level), "failed": sum(level.errors.values())} for level in each.levels]
        parts += [workload_table(each.lists), Table(f"{each.lists.workload}: served under load", _LEVELS, rows)]
        most = each.capacity
        if most is not None:
            ours, theirs = (statistics.median(side) for side in (most.served_pairs_per_s, most.peer_pairs_per_s))
            parts.append(
                f"most pairs/s in turns: served {ours:,.1f} ({most.concurrency} callers), {most.peer_setting}, all "
                f"lists in one call {theirs:,.1f}; ratio {text(most.ratio, '.3f')}"
            )
    if model.server_mib is not None:
        parts.append(f"Device memory: server {model.server_mib:,} MiB, peer {model.peer_mib:,} MiB")
    parts += ["the change of the exported configs:\n" + model.config_change, targets(model.targets)]
    return Report("gpu", model.triton_version, {}, {}, parts)


def _checkpoints(values: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for value in values:
        shape, separator, folder = value.partition("=")
        if not separator or shape not in SHAPES:
            raise BenchError(f"--checkpoint {value}: it must be SHAPE=FOLDER with a shape of {', '.join(SHAPES)}")
        found[shape] = Path(folder)
        check_shape(found[shape], shape)
    return found


def _workloads(names: list[str] | None) -> tuple[str, ...]:
    unknown = [name for name in names or () if name not in BY_NAME]
    if unknown:
        raise BenchError(f"--workload {unknown[0]}: there is none of that name; there are {', '.join(BY_NAME)}")
    return tuple(dict.fromkeys(names or BY_NAME))
