"""``triton-rerank-bench gpu``: the served model on a GPU, beside sentence-transformers on the same one.

Each shape is tuned as `perf` does it, then served with the setting that was found, and raced as `peers` does it. The
peer computes in the worker process of every other peer, on the device.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from triton_rerank_bench.compare.command import workload_table
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.gpu import device as devices
from triton_rerank_bench.gpu.beside import (
    BATCH_SIZES,
    CAPACITY_WORKLOAD,
    DEFAULT_CONCURRENCIES,
    SideBySide,
    WorkloadFigures,
    judge,
)
from triton_rerank_bench.gpu.device import Device
from triton_rerank_bench.gpu.models import DEFAULT_SHAPES, SHAPES, Prepared, check_shape, prepare
from triton_rerank_bench.machine import usable_cores
from triton_rerank_bench.options import DEFAULT_SEED, positive, seconds, whole
from triton_rerank_bench.progress import OnStep, showing_time_left
from triton_rerank_bench.report import LOUD, Json, Report, Table, missed, others, targets, text
from triton_rerank_bench.served import read_model, serve
from triton_rerank_bench.tune.answer import setting_text
from triton_rerank_bench.tune.command import tune
from triton_rerank_bench.tune.findings import Answer, Schedule, Tuning, Wanted
from triton_rerank_bench.tune.knobs import KNOBS, ground, on_cpu, on_gpu
from triton_rerank_bench.tune.report import tables
from triton_rerank_bench.tune.servers import SettingServers
from triton_rerank_bench.tune.variants import Configs, config_diff, read_configs, variant
from triton_rerank_bench.workloads import BY_NAME

PRECISIONS = {"cuda": "fp16", "cpu": "fp32"}
MEMORY_CALLS = 3  # untimed calls of each workload before memory is read

_LEVELS = {
    "callers": "concurrency", "pairs/s": "pairs_per_s:,.1f", "tokens/s": "tokens_per_s:,.0f",
    "p50 ms": "latency.p50_ms:,.2f", "p99 ms": "latency.p99_ms:,.2f", "rows/execution": "rows_per_execution:.1f",
    "padded/real": "padded_over_real:.2f", "failed": "failed",
}  # fmt: skip


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
    add("--graph", choices=("padded", "flat"), default="padded", help="that is exported (default %(default)s)")
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
    given = ("graph", "minutes", "rounds", "level_s", "attention", "seed")
    settings: Json = {
        **{name: getattr(options, name) for name in given},
        "concurrencies": list(options.concurrency or DEFAULT_CONCURRENCIES),
        "batch_sizes": sorted(options.batch_size or BATCH_SIZES),
        "interrupted": interrupted,
    }
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
                given = checkpoints.get(shape)
                prepared = prepare(shape, given, options.work, precision, options.graph, on_step=on_step)
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
        """Place the steps on the device, then set what was found best."""
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
