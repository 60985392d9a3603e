"""``triton-rerank-bench gpu``: the served model on a GPU, beside sentence-transformers on the same one.

Each shape is tuned as `perf` does it, then served with the setting that was found, and raced as `peers` does it. The
peer computes in the worker process of every other peer, on the device.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console

from triton_rerank_bench.compare.command import workload_table
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.gpu.device import Device, describe
from triton_rerank_bench.gpu.first import run_first
from triton_rerank_bench.gpu.measure import ModelFigures, measure_model
from triton_rerank_bench.gpu.models import DEFAULT_SHAPES, SHAPES, check_shape, prepare
from triton_rerank_bench.load.command import level_tables
from triton_rerank_bench.options import add_common, add_workloads, number, positive, whole
from triton_rerank_bench.progress import showing_time_left
from triton_rerank_bench.report import LOUD, Json, Report, Table, missed, others, targets, text
from triton_rerank_bench.tune.answer import setting_text
from triton_rerank_bench.tune.report import tables
from triton_rerank_bench.workloads import BY_NAME

DEFAULT_CONCURRENCIES = (1, 8, 32)
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1_024)
PRECISIONS = {"cuda": "fp16", "cpu": "fp32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that may be chosen."""
    add, each = parser.add_argument, "repeatable; default"
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    add("--device-id", type=whole, default=0, help="GPU, as nvidia-smi counts (default %(default)s)")
    add("--shape", action="append", choices=list(SHAPES), help=f"{each} {', '.join(DEFAULT_SHAPES)}")
    add("--graph", choices=("padded", "flat"), default="padded", help="that is exported (default %(default)s)")
    weights = "trained weights of a shape; repeatable; a shape without them gets random ones"
    add("--checkpoint", action="append", default=[], metavar="SHAPE=FOLDER", help=weights)
    add_workloads(parser, "all")
    add("--minutes", type=number, default=5.0, help="of the search for a model's setting (default %(default)g)")
    add("--rounds", type=positive, default=15, help="of single lists (default %(default)s)")
    add("--level-s", type=number, default=5.0, help="seconds of each level of load (default %(default)s)")
    callers = ", ".join(map(str, DEFAULT_CONCURRENCIES))
    add("--concurrency", type=positive, action="append", help=f"callers at a level; {each} {callers}")
    attention = "that sentence-transformers uses; flash_attention_2 needs flash-attn (default %(default)s)"
    add("--attention", default="sdpa", help=attention)
    sizes = ", ".join(map(str, BATCH_SIZES))
    add("--batch-size", type=positive, action="append", help=f"of sentence-transformers; {each} {sizes}")
    add("--work", type=Path, default=Path(".cache/gpu"), help="for models, several GB (default %(default)s)")
    add("--check", action="store_true", help="exit with 1 if a target is missed")
    first = "only the first 12 minutes: matrix rate, kernels, parity and speed of both graphs, in process"
    add("--first", action="store_true", help=first)
    add_common(parser)


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Measure every shape; Ctrl-C keeps those that are done.

    Returns:
        The report, and 130 after Ctrl-C, 1 if ``--check`` is given and a target was missed, else 0.

    Raises:
        BenchError: a wrong option, something that the device needs is missing, or a figure cannot be had.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    checkpoints = _checkpoints(options.checkpoint)
    options.workload = list(dict.fromkeys(options.workload or BY_NAME))
    options.concurrency = options.concurrency or list(DEFAULT_CONCURRENCIES)
    options.batch_size = sorted(options.batch_size or BATCH_SIZES)
    device = describe(options.device, options.device_id)
    for line in device.lines():
        console.print(line.removeprefix(LOUD), style="red" if line.startswith(LOUD) else None, highlight=False)
    if options.first:
        options.shape = options.shape or list(DEFAULT_SHAPES)
        return run_first(options, checkpoints, device, PRECISIONS[device.kind], console)
    models, interrupted = _measure(options, checkpoints, device, console)
    given = ("graph", "minutes", "rounds", "level_s", "attention", "seed")
    settings: Json = {
        **{name: getattr(options, name) for name in given},
        "concurrencies": options.concurrency,
        "batch_sizes": options.batch_size,
        "interrupted": interrupted,
    }
    version = models[0].triton_version if models else None
    report = Report("gpu", version, settings, {"device": device, "models": models}, [])
    judged = [row for model in models for row in model.targets]
    return report.json(), INTERRUPTED if interrupted else int(options.check and missed(judged))


def _measure(
    options: argparse.Namespace, checkpoints: dict[str, Path], device: Device, console: Console
) -> tuple[list[ModelFigures], bool]:
    models: list[ModelFigures] = []
    precision = PRECISIONS[device.kind]
    try:
        for shape in dict.fromkeys(options.shape or DEFAULT_SHAPES):
            with showing_time_left() as on_step:
                given = checkpoints.get(shape)
                prepared = prepare(shape, given, options.work, precision, options.graph, on_step=on_step)
                models.append(measure_model(prepared, precision, device, options, on_step=on_step))
            model_report(models[-1]).print(console)
    except KeyboardInterrupt:
        if not models:
            raise KeyboardInterrupt("before the first model was measured; nothing is kept") from None
        console.print("interrupted: the report holds the models above")
        return models, True
    return models, False


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
        parts += [workload_table(each.lists), *level_tables(each.lists.workload, each.levels)]
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
