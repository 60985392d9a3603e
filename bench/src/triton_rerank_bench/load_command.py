"""``triton-rerank-bench load``: one server under load, level by level."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from triton_rerank import RerankClient
from triton_rerank_bench import load_report, report, workloads
from triton_rerank_bench.arrivals import check_rate
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.load import TIMEOUT_S, Load, LoadFigures, check_concurrency, check_seconds
from triton_rerank_bench.load_level import ELSEWHERE
from triton_rerank_bench.load_report import LoadReport
from triton_rerank_bench.repository import read_model
from triton_rerank_bench.served import CALL_TIMEOUT_S, ServedModel, serve, triton_version
from triton_rerank_bench.workloads import Workload

DEFAULT_CONCURRENCY = "1,2,4,8"
DEFAULT_RATE = "50%,80%"
DEFAULT_WORKLOAD = "passages"
DEFAULT_SEED = 1
_SECONDS = (("--duration", 20.0, "of a level"), ("--warm-up", 3.0, "before it"), ("--timeout", TIMEOUT_S, "of a call"))
_ASK_TIMEOUT_S = 10.0  # for a server to say that it has the model


@dataclass(frozen=True)
class Rate:
    """Calls a second, or a share of what the closed loop reached."""

    value: float
    is_share: bool


@dataclass(frozen=True)
class Sweep:
    """Levels of each workload, and how long each of them lasts."""

    concurrencies: tuple[int, ...]
    rates: tuple[Rate, ...]
    duration_s: float
    warm_up_s: float
    timeout_s: float
    seed: int

    @property
    def level_s(self) -> float:
        """Seconds of one level."""
        return self.warm_up_s + self.duration_s

    @property
    def seconds(self) -> float:
        """Of all levels of one workload."""
        return (len(self.concurrencies) + len(self.rates)) * self.level_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model-repository", type=Path, metavar="PATH", help="serve and load the model in it")
    where.add_argument("--target", metavar="HOST:PORT", help="load the server that runs there (gRPC); needs --model")
    parser.add_argument("--model", help="public model name, if the repository holds more than one")
    names = ", ".join(workloads.BY_NAME)
    parser.add_argument("--workload", action="append", metavar="NAME", help=f"{names}; repeatable (default passages)")
    parser.add_argument("--concurrency", help=f"callers of each closed loop (default {DEFAULT_CONCURRENCY})")
    parser.add_argument(
        "--rate",
        help="calls a second of each open loop, or a share of the best closed loop, such as 80%% "
        f"(default {DEFAULT_RATE.replace('%', '%%')}; with only one of --rate and --concurrency, only its levels)",
    )
    for name, default, of in _SECONDS:
        parser.add_argument(name, type=float, default=default, metavar="S", help=f"{of} (default %(default)g s)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="real text: a collection in BEIR form")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of texts and arrivals (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the report there as JSON")


def run(options: argparse.Namespace, console: Console) -> tuple[report.Json, int]:
    """Measure all levels and print tables.

    Returns:
        The report as plain data, and 0, or 130 if the user interrupted it; it has the levels that had ended then.

    Raises:
        BenchError: an option is wrong, or the server ended.
        ServerStartError: Triton did not start.
        RerankError: no server at the target, or it does not have the model.
    """
    sweep = _sweep(options)
    lists = choose_lists(options.workload or [DEFAULT_WORKLOAD], options.data, options.seed)
    model = _model(options)
    progress = _progress()
    levels: list[LoadFigures] = []
    interrupted = False
    with _reach(options, model, progress) as served:
        info = served.client.model_info()
        try:
            for figures in measure_load(served, model, lists, sweep, progress):
                levels.append(figures)
        except KeyboardInterrupt:
            interrupted = True
    if not levels:
        console.print("interrupted before a level ended: there are no figures")
        return {"kind": "load", "interrupted": True}, INTERRUPTED
    measured = LoadReport(
        model=model,
        precision=info.precision,
        max_length=info.max_length,
        triton_version=served.triton_version,
        levels=levels,
        interrupted=interrupted,
    )
    load_report.print_load(console, measured)
    return load_report.load_json(measured, _settings(options, sweep)), INTERRUPTED if interrupted else 0


def measure_load(
    served: ServedModel, model: str, lists: Mapping[str, Sequence[Workload]], sweep: Sweep, progress: Progress
) -> Iterator[LoadFigures]:
    """Run all levels of all workloads, closed loops first: they tell the capacity.

    Args:
        served: the server.
        model: public model name.
        lists: by name of the workload.
        sweep: the levels.
        progress: where progress is shown.

    Raises:
        BenchError: a share of the capacity is wanted, and no call was answered.
        RerankError: the server ended.
    """
    task = progress.add_task("", total=len(lists) * sweep.seconds)
    done = 0

    def advance(seconds: float) -> None:
        progress.advance(task, seconds)

    for of_name in lists.values():
        load = Load(served, model, of_name, seed=sweep.seed, timeout_s=sweep.timeout_s, on_seconds=advance)
        with closing(load):
            for level in _levels(load, of_name, sweep, lambda label: progress.update(task, description=label)):
                done += 1
                progress.update(task, completed=done * sweep.level_s)
                yield level


def choose_lists(names: Sequence[str], data: Path | None, seed: int) -> dict[str, list[Workload]]:
    """Lists of each workload, generated or from a collection.

    Raises:
        BenchError: a name is not known, or the collection is not there or too small.
    """
    known = workloads.BY_NAME
    for name in names:
        if name not in known:
            raise BenchError(f"--workload {name}: there is none of this name; there are {', '.join(known)}")
    known = workloads.from_collection(data) if data else known
    return {name: known[name](seed) for name in names}


def parse_concurrency(text: str) -> tuple[int, ...]:
    """Read "1,2,4".

    Raises:
        BenchError: a part of it cannot be a number of callers.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal():
            raise BenchError(
                f"--concurrency {text}: {part!r} is not a whole number; give such as {DEFAULT_CONCURRENCY}"
            )
    return tuple(check_concurrency(int(part)) for part in parts)


def parse_rates(text: str, duration_s: float) -> tuple[Rate, ...]:
    """Read "1.5,80%".

    Raises:
        BenchError: a part of it cannot be a rate, or gives no call in the duration.
    """
    rates = []
    for part in (part.strip() for part in text.split(",")):
        try:
            rate = Rate(float(part.removesuffix("%")) / (100 if part.endswith("%") else 1), part.endswith("%"))
        except ValueError as exc:
            raise BenchError(f"--rate {text}: {part!r} is not a number; give such as 1.5 or 80%") from exc
        check_rate(rate.value, math.inf if rate.is_share else duration_s)
        rates.append(rate)
    return tuple(rates)


def _sweep(options: argparse.Namespace) -> Sweep:
    check_seconds(options.duration, options.warm_up)
    if not (math.isfinite(options.timeout) and options.timeout > 0):
        raise BenchError(f"--timeout {options.timeout:g}: it must be a number of seconds above 0")
    neither = options.concurrency is None and options.rate is None
    concurrency = DEFAULT_CONCURRENCY if neither else options.concurrency
    rate = DEFAULT_RATE if neither else options.rate
    concurrencies = () if concurrency is None else parse_concurrency(concurrency)
    rates = () if rate is None else parse_rates(rate, options.duration)
    if any(r.is_share for r in rates) and not concurrencies:
        raise BenchError(f"--rate {rate}: a share is one of the best closed loop; give --concurrency too")
    return Sweep(concurrencies, rates, options.duration, options.warm_up, options.timeout, options.seed)


def _levels(
    load: Load, lists: Sequence[Workload], sweep: Sweep, on_level: Callable[[str], None]
) -> Iterator[LoadFigures]:
    name, best = lists[0].name, 0.0
    for concurrency in sweep.concurrencies:
        on_level(f"{name}, callers: {concurrency}")
        figures = load.closed(concurrency, sweep.duration_s, sweep.warm_up_s)
        best = max(best, figures.pairs_per_s)
        yield figures
    calls_per_s = best * len(lists) / sum(len(workload.documents) for workload in lists)
    for rate in sweep.rates:
        if rate.is_share and not calls_per_s:
            raise BenchError(f"{name}: no call of the closed loops was answered ({figures.errors}); look at the server")
        per_s = max(rate.value * calls_per_s, 1 / sweep.duration_s) if rate.is_share else rate.value
        on_level(f"{name}, calls a second: {per_s:.3g}")
        yield load.open(per_s, sweep.duration_s, sweep.warm_up_s)


def _model(options: argparse.Namespace) -> str:
    if options.target is None:
        return read_model(options.model_repository, options.model).info.name
    if options.model is None:
        raise BenchError(f"--target {options.target}: say by --model which of its models is to be loaded")
    return str(options.model)


@contextmanager
def _reach(options: argparse.Namespace, model: str, progress: Progress) -> Iterator[ServedModel]:
    """The server, started here or running elsewhere; progress is shown once the latter has answered."""
    if options.target is not None:
        with RerankClient(options.target, model=model, timeout_s=CALL_TIMEOUT_S) as client:
            client.model_info(timeout_s=_ASK_TIMEOUT_S)
            with progress:
                yield ServedModel(client, ELSEWHERE, triton_version(options.target))
        return
    task = progress.add_task("starting Triton", total=None)

    def on_progress(step: str) -> None:
        progress.update(task, description=step)

    with progress, serve(options.model_repository, model, on_progress=on_progress) as served:
        progress.remove_task(task)
        yield served


def _settings(options: argparse.Namespace, sweep: Sweep) -> report.Json:
    return {
        "duration_s": sweep.duration_s,
        "warm_up_s": sweep.warm_up_s,
        "timeout_s": sweep.timeout_s,
        "seed": sweep.seed,
        "target": options.target,
        "data": options.data.resolve().name if options.data else None,
    }


def _progress() -> Progress:
    # On stderr: stdout carries the report, whose last line is JSON.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=2)  # it must not cost what is timed
