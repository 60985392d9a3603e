"""``triton-rerank-bench gpu``: the served model on a GPU, beside sentence-transformers on the same one."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from triton_rerank_bench import gpu_device, gpu_report, report
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.gpu_figures import ModelFigures
from triton_rerank_bench.gpu_models import DEFAULT_SHAPES, SHAPES, check_shape, prepare
from triton_rerank_bench.gpu_peer import BATCH_SIZES
from triton_rerank_bench.gpu_speed import measure_model
from triton_rerank_bench.gpu_workload import Plan
from triton_rerank_bench.workloads import BY_NAME

DEFAULT_WORK = Path(".cache/gpu")
DEFAULT_ROUNDS = 15
DEFAULT_LEVEL_S = 5.0
DEFAULT_CONCURRENCIES = (1, 8, 32)
PRECISIONS = {"cuda": "fp16", "cpu": "fp32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that may be chosen."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    parser.add_argument("--device-id", type=_whole, default=0, help="GPU, as nvidia-smi counts (default %(default)s)")
    parser.add_argument(
        "--shape", action="append", choices=list(SHAPES), help=f"repeatable; default {', '.join(DEFAULT_SHAPES)}"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="SHAPE=FOLDER",
        help="trained weights of a shape; repeatable; a shape without them gets random ones",
    )
    parser.add_argument("--workload", action="append", help=f"of {', '.join(BY_NAME)}; repeatable; default all")
    parser.add_argument(
        "--rounds", type=_positive, default=DEFAULT_ROUNDS, help="of single lists (default %(default)s)"
    )
    parser.add_argument(
        "--level-s", type=_seconds, default=DEFAULT_LEVEL_S, help="seconds of each level of load (default %(default)s)"
    )
    parser.add_argument(
        "--concurrency",
        type=_positive,
        action="append",
        help=f"callers at a level; repeatable; default {', '.join(map(str, DEFAULT_CONCURRENCIES))}",
    )
    parser.add_argument(
        "--attention",
        default="sdpa",
        help="that sentence-transformers uses; flash_attention_2 needs flash-attn (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=_positive,
        action="append",
        help=f"of sentence-transformers; repeatable; default {', '.join(map(str, BATCH_SIZES))}",
    )
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="for models, several GB (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--seed", type=int, default=1, help="of the texts and of the turns (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the report there as JSON")


def run(options: argparse.Namespace, console: Console) -> tuple[report.Json, int]:
    """Measure every shape; Ctrl-C keeps those that are done.

    Returns:
        The report, and 130 after Ctrl-C, 1 if ``--check`` is given and a target was missed, else 0.

    Raises:
        BenchError: a wrong option, something that the device needs is missing, or a figure cannot be had.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    checkpoints = _checkpoints(options.checkpoint)
    names = _workloads(options.workload)
    device = gpu_device.describe(options.device, options.device_id)
    gpu_report.print_device(console, device)
    concurrencies = tuple(options.concurrency or DEFAULT_CONCURRENCIES)
    plan = Plan(
        device=device,
        device_id=options.device_id,
        workloads=names,
        n_rounds=options.rounds,
        level_s=options.level_s,
        concurrencies=concurrencies,
        attention=options.attention,
        batch_sizes=tuple(sorted(options.batch_size or BATCH_SIZES)),
        seed=options.seed,
    )
    models, interrupted = _measure(options, checkpoints, plan, console)
    settings: report.Json = {
        "rounds": options.rounds,
        "level_s": options.level_s,
        "concurrencies": list(concurrencies),
        "attention": options.attention,
        "batch_sizes": list(plan.batch_sizes),
        "seed": options.seed,
        "interrupted": interrupted,
    }
    missed = any(target.passed is False for model in models for target in model.targets)
    code = INTERRUPTED if interrupted else int(options.check and missed)
    return gpu_report.gpu_json(device, models, settings), code


def _measure(
    options: argparse.Namespace, checkpoints: dict[str, Path], plan: Plan, console: Console
) -> tuple[list[ModelFigures], bool]:
    models: list[ModelFigures] = []
    precision = PRECISIONS[options.device]
    try:
        with Console(stderr=True).status("") as status:

            def on_step(step: str) -> None:
                status.update(step)

            for shape in dict.fromkeys(options.shape or DEFAULT_SHAPES):
                prepared = prepare(shape, checkpoints.get(shape), options.work, precision, on_step=on_step)
                models.append(measure_model(prepared, precision, plan, on_step=on_step))
                gpu_report.print_model(console, models[-1])
    except KeyboardInterrupt:
        if not models:
            raise KeyboardInterrupt("before the first model was measured; nothing is kept") from None
        console.print("interrupted: the report holds the models above")
        return models, True
    return models, False


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


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
