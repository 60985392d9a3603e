"""``triton-rerank-bench perf``: the fastest setting that holds a p99 on this machine, and a report with plots."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console

from triton_rerank_bench import workloads
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.command import choose_lists
from triton_rerank_bench.machine import usable_cores
from triton_rerank_bench.options import add_folder, number
from triton_rerank_bench.progress import showing_time_left
from triton_rerank_bench.report import Json, check_folder, nothing_measured
from triton_rerank_bench.served import name_repositories, read_model
from triton_rerank_bench.tune.answer import Exported, apply, check_available
from triton_rerank_bench.tune.findings import Schedule, Wanted
from triton_rerank_bench.tune.knobs import KNOBS, ground
from triton_rerank_bench.tune.report import FILES, perf_files, perf_report
from triton_rerank_bench.tune.search import Tuner
from triton_rerank_bench.tune.servers import SettingServers
from triton_rerank_bench.tune.variants import read_configs

DEFAULT_MINUTES = 20.0
QUICK_MINUTES = 3.0
_LEAST_MINUTES = 0.25
_NVIDIA = Path("/proc/driver/nvidia/version")  # is there while its driver is loaded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    parser.add_argument(
        "--model-repository",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="the one that you serve, then others to compare; repeatable",
    )
    parser.add_argument("--model", help="public model name, if a repository holds more than one")
    names = list(workloads.BY_NAME)
    parser.add_argument(
        "--workload", choices=names, default="passages", metavar="NAME", help=f"{', '.join(names)} (default passages)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="real text: a collection in BEIR form")
    p99 = "latency that 99 of 100 calls must not exceed (default: any)"
    parser.add_argument("--p99-ms", type=number, metavar="MS", help=p99)
    rate = "pairs a second that all machines together must answer"
    parser.add_argument("--rate", type=number, metavar="N", help=rate)
    parser.add_argument("--quick", action="store_true", help=f"take {QUICK_MINUTES:g} minutes")
    parser.add_argument("--minutes", type=number, metavar="M", help=f"that it may take (default {DEFAULT_MINUTES:g})")
    knobs = f"{', '.join(KNOBS)}; repeatable (default all)"
    parser.add_argument("--knob", action="append", default=[], choices=list(KNOBS), metavar="NAME", help=knobs)
    parser.add_argument(
        "--apply", action="store_true", help="put a confirmed answer into the first repository, by triton-rerank-export"
    )
    add_folder(parser)


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Tune, print the answer and write the report; gives it as plain data, and 130 after an interruption, else 0.

    Raises:
        BenchError: an option is wrong, or an exported setting cannot be measured; nothing is written then. Or the
            answer could not be applied, after the report.
        ServerStartError, RerankError: Triton did not start with an exported setting, or did not answer.
    """
    if options.apply:
        check_available()
    wanted = Wanted(options.p99_ms, options.rate, chosen_knobs(options))
    schedule = Schedule.of(60 * _minutes(options))
    exported, model = _repositories(options)
    repositories = {label: Path(each.folder) for label, each in exported.items()}
    lists = choose_lists([options.workload], options.data, options.seed)[options.workload]
    bounds = {"cores": usable_cores(), "most_pairs": max(len(each.documents) for each in lists)}
    grounds = {
        label: ground(label, read_configs(folder, model), has_gpu=_NVIDIA.exists(), **bounds)
        for label, folder in repositories.items()
    }
    check_folder(options.output_folder, FILES)
    with (
        showing_time_left() as on_step,
        SettingServers(repositories, model, lists, seed=options.seed, on_progress=on_step) as servers,
    ):
        mean_pairs = statistics.fmean(len(each.documents) for each in lists)
        tuner = Tuner(servers, grounds, wanted, schedule, pairs_per_call=mean_pairs, on_step=on_step)
        tuning = tuner.tuning
        try:
            tuner.run()
        except KeyboardInterrupt:
            tuning.interrupted = True
    tuning.elapsed_s, tuning.other_load = tuner.elapsed_s, servers.other_load.share()
    answer = tuning.answer()
    if answer is None:
        return nothing_measured("perf", console)
    diff = servers.diff(answer.setting)
    report = perf_report(tuning, model, exported, options, servers.triton_version, diff)
    finished = report.finish(options, console, perf_files(tuning, report), *diff.splitlines())
    for line in apply(tuning, answer, model, exported) if options.apply else ():
        console.print(line, markup=False, highlight=False, style="bold")
    return finished


def chosen_knobs(options: argparse.Namespace) -> tuple[str, ...]:
    """Those that are given, or all, in the order of their promise."""
    return tuple(knob for knob in KNOBS if knob in (options.knob or KNOBS))


def _minutes(options: argparse.Namespace) -> float:
    if options.quick and options.minutes is not None:
        raise BenchError(f"--quick takes {QUICK_MINUTES:g} minutes: give it or --minutes, not both")
    minutes: float = QUICK_MINUTES if options.quick else options.minutes or DEFAULT_MINUTES
    if minutes < _LEAST_MINUTES:
        raise BenchError(f"--minutes {minutes:g}: nothing can be compared in less than {_LEAST_MINUTES:g} minutes")
    return minutes


def _repositories(options: argparse.Namespace) -> tuple[dict[str, Exported], str]:
    """Label -> repository, and the public name of the model that all of them hold."""
    if not options.model_repository:
        raise BenchError("--model-repository: none is given; give the one to tune, several as NAME=PATH to compare")
    folders = name_repositories(options.model_repository)
    files = {label: read_model(folder, options.model) for label, folder in folders.items()}
    if len({each.info.name for each in files.values()}) > 1:
        held = ", ".join(f"{label} holds {each.info.name}" for label, each in files.items())
        raise BenchError(f"--model-repository: {held}; say by --model which one is to be compared")
    exported = {label: Exported(each.info.precision, each.engine, str(folders[label])) for label, each in files.items()}
    return exported, next(iter(files.values())).info.name
