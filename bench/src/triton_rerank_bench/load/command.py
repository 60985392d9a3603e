"""``triton-rerank-bench load``: one server under load, level by level."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from triton_rerank import ModelInfo, RerankClient
from triton_rerank_bench import workloads
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.generator import ELSEWHERE, TIMEOUT_S, Load, LoadFigures
from triton_rerank_bench.load.loops import check_rate
from triton_rerank_bench.machine import describe_machine
from triton_rerank_bench.options import add_common, add_workloads, from_zero, number
from triton_rerank_bench.progress import OnStep, showing_time_left
from triton_rerank_bench.report import LOUD, QUIET, Json, Report, Table, nothing_measured, text
from triton_rerank_bench.served import CALL_TIMEOUT_S, ServedModel, read_model, serve, triton_version
from triton_rerank_bench.workloads import Workload

DEFAULT_CONCURRENCY = "1,2,4,8"
DEFAULT_RATE = "50%,80%"
MOST_CALLERS = 1000
LATE = 0.1  # of the median latency, that the load generator's own delay may be before figures mean little
_SECONDS = (
    ("--duration", number, 20.0, "of a level"),
    ("--warm-up", from_zero, 3.0, "before it"),
    ("--timeout", number, TIMEOUT_S, "of a call"),
)
_ASK_TIMEOUT_S = 10.0  # for a server to say that it has the model

_CALLERS = {
    "level": "level", "calls": "calls", "failed": "failed", "pairs/s": "pairs_per_s:,.1f",
    "tokens/s": "tokens_per_s:,.0f", "p50 ms": "latency.p50_ms:,.1f", "p90 ms": "latency.p90_ms:,.1f",
    "p99 ms": "latency.p99_ms:,.1f", "max ms": "latency.max_ms:,.1f", "late ms": "late.p99_ms:,.1f",
}  # fmt: skip
_SERVER = {
    "level": "level", "queue ms": "queue_ms:,.1f", "compute ms": "compute_ms:,.1f",
    "merged": "requests_per_execution:.2f", "rows/execution": "rows_per_execution:.2f",
    "padding": "padded_over_real:.2f", "memory MB": "memory_mb:.0f", "others": "other_load:.0%",
}  # fmt: skip
_NOTE = (
    "Open loop: latency counts from the intended start of a call, and late is the part of it before the call was "
    "made (p99). queue, compute: Triton's own, mean a request of the encoder; merged: requests an execution; none of "
    "them under continuous scheduling. padding: padded over real tokens of the encoder's tensors. others: share of "
    "the cores that other processes used meanwhile."
)


@dataclass(frozen=True)
class Rate:
    """Calls a second, or a share of what the closed loop reached."""

    value: float
    is_share: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model-repository", type=Path, metavar="PATH", help="serve and load the model in it")
    where.add_argument("--target", metavar="HOST:PORT", help="load the server that runs there (gRPC); needs --model")
    parser.add_argument("--model", help="public model name, if the repository holds more than one")
    add_workloads(parser, "passages")
    parser.add_argument("--concurrency", help=f"callers of each closed loop (default {DEFAULT_CONCURRENCY})")
    parser.add_argument(
        "--rate",
        help="calls a second of each open loop, or a share of the best closed loop, such as 80%% "
        f"(default {DEFAULT_RATE.replace('%', '%%')}; with only one of --rate and --concurrency, only its levels)",
    )
    for name, kind, default, of in _SECONDS:
        parser.add_argument(name, type=kind, default=default, metavar="S", help=f"{of} (default %(default)g s)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="real text: a collection in BEIR form")
    add_common(parser)


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Measure all levels and print tables.

    Returns:
        The report as plain data, and 0, or 130 if the user interrupted it; it has the levels that had ended then.

    Raises:
        BenchError: an option is wrong, or the server ended.
        ServerStartError, RerankError: Triton did not start, is not at the target, or does not have the model.
    """
    concurrencies, rates = levels_asked_for(options)
    lists = choose_lists(options.workload or ["passages"], options.data, options.seed)
    model = _model(options)
    found: list[LoadFigures] = []
    interrupted = False
    with _reach(options, model) as (served, on_step):
        info = served.client.model_info()
        try:
            for figures in measure_load(served, model, lists, concurrencies, rates, options, on_step):
                found.append(figures)
        except KeyboardInterrupt:
            interrupted = True
    if not found:
        return nothing_measured("load", console)
    settings: Json = {
        "duration_s": options.duration,
        "warm_up_s": options.warm_up,
        "timeout_s": options.timeout,
        "seed": options.seed,
        "target": options.target,
        "data": options.data.resolve().name if options.data else None,
    }
    report = load_report(info, served.triton_version, found, settings, interrupted=interrupted)
    return report.finish(options, console)


def levels_asked_for(options: argparse.Namespace) -> tuple[tuple[int, ...], tuple[Rate, ...]]:
    """Callers of each closed loop, and each open loop's rate; raises BenchError where one cannot be."""
    neither = options.concurrency is None and options.rate is None
    concurrency = DEFAULT_CONCURRENCY if neither else options.concurrency
    rate = DEFAULT_RATE if neither else options.rate
    concurrencies = () if concurrency is None else parse_concurrency(concurrency)
    rates = () if rate is None else parse_rates(rate, options.duration)
    if any(r.is_share for r in rates) and not concurrencies:
        raise BenchError(f"--rate {rate}: a share is one of the best closed loop; give --concurrency too")
    return concurrencies, rates


def measure_load(
    served: ServedModel,
    model: str,
    lists: Mapping[str, Sequence[Workload]],
    concurrencies: Sequence[int],
    rates: Sequence[Rate],
    options: argparse.Namespace,
    on_step: OnStep,
) -> Iterator[LoadFigures]:
    """Run all levels of all workloads, closed loops first: they tell the capacity.

    Raises:
        BenchError: a share of the capacity is wanted, and no call was answered.
        RerankError: the server ended.
    """
    seconds = (options.duration, options.warm_up)
    lefts_s = itertools.count(len(lists) * (len(concurrencies) + len(rates)) * sum(seconds), -sum(seconds))
    for name, of_name in lists.items():
        with closing(Load(served, model, of_name, seed=options.seed, timeout_s=options.timeout)) as load:
            best = 0.0
            for concurrency in concurrencies:
                on_step(f"{name}, callers: {concurrency}", next(lefts_s))
                figures = load.closed(concurrency, *seconds)
                best = max(best, figures.pairs_per_s)
                yield figures
            calls_per_s = best * len(of_name) / sum(len(workload.documents) for workload in of_name)
            for rate in rates:
                if rate.is_share and not calls_per_s:
                    failed = f"no call of the closed loops was answered ({figures.errors})"
                    raise BenchError(f"{name}: {failed}; look at the server")
                per_s = max(rate.value * calls_per_s, 1 / options.duration) if rate.is_share else rate.value
                on_step(f"{name}, calls a second: {per_s:.3g}", next(lefts_s))
                yield load.open(per_s, *seconds)


def choose_lists(names: Sequence[str], data: Path | None, seed: int) -> dict[str, list[Workload]]:
    """Lists of each workload, generated or of a collection; raises InvalidRequestError or BenchError for a bad one."""
    known = workloads.from_collection(data) if data else workloads.BY_NAME
    return {name: known[name](seed) for name in names}


def load_report(
    info: ModelInfo, version: str, levels: Sequence[LoadFigures], settings: Json, *, interrupted: bool
) -> Report:
    """What callers saw and what the server did, workload by workload."""
    is_here = any(figures.other_load is not None for figures in levels)
    machine = describe_machine()
    where = f"{machine.cpu}, {machine.cores} cores" if is_here else "a server that ran already"
    parts: list[str | Table] = [
        f"{info.name} {info.precision}, max_length {info.max_length}, Triton {version}; {where}"
    ]
    for name, of_name in itertools.groupby(levels, key=lambda figures: figures.workload):
        these = list(of_name)
        parts += [*level_tables(name, these), *itertools.chain.from_iterable(map(_remarks, these))]
    figures: Json = {"model": info.name, "precision": info.precision, "max_length": info.max_length, "levels": levels}
    return Report("load", version, settings, figures, [*parts, _NOTE], interrupted=interrupted)


def level_tables(workload: str, levels: Sequence[LoadFigures]) -> list[Table]:
    """What callers saw and what the server did."""
    return [
        Table(f"{workload}: what callers saw", _CALLERS, levels),
        Table(f"{workload}: what the server did", _SERVER, levels),
    ]


def parse_concurrency(value: str) -> tuple[int, ...]:
    """Read "1,2,4"; raises BenchError where a part of it cannot be a number of callers."""
    parts = [part.strip() for part in value.split(",")]
    for part in parts:
        if not (part.isdecimal() and 1 <= int(part) <= MOST_CALLERS):
            raise BenchError(
                f"--concurrency {value}: {part!r} is no number of callers from 1 to {MOST_CALLERS}; give such as "
                f"{DEFAULT_CONCURRENCY}"
            )
    return tuple(map(int, parts))


def parse_rates(value: str, duration_s: float) -> tuple[Rate, ...]:
    """Read "1.5,80%"; raises BenchError where a part cannot be a rate, or gives no call in the duration."""
    rates = []
    for part in (part.strip() for part in value.split(",")):
        try:
            rate = Rate(float(part.removesuffix("%")) / (100 if part.endswith("%") else 1), part.endswith("%"))
        except ValueError as exc:
            raise BenchError(f"--rate {value}: {part!r} is not a number; give such as 1.5 or 80%") from exc
        check_rate(rate.value, math.inf if rate.is_share else duration_s)
        rates.append(rate)
    return tuple(rates)


def _model(options: argparse.Namespace) -> str:
    if options.target is None:
        return read_model(options.model_repository, options.model).info.name
    if options.model is None:
        raise BenchError(f"--target {options.target}: say by --model which of its models is to be loaded")
    return str(options.model)


@contextmanager
def _reach(options: argparse.Namespace, model: str) -> Iterator[tuple[ServedModel, OnStep]]:
    """The server, started here or running elsewhere; progress is shown once the latter has answered."""
    if options.target is None:
        with showing_time_left() as on_step, serve(options.model_repository, model, on_progress=on_step) as served:
            yield served, on_step
        return
    with RerankClient(options.target, model=model, timeout_s=CALL_TIMEOUT_S) as client:
        client.model_info(timeout_s=_ASK_TIMEOUT_S)
        served = ServedModel(client, options.target, ELSEWHERE, triton_version(options.target))
        with showing_time_left() as on_step:
            yield served, on_step


def _remarks(figures: LoadFigures) -> Iterator[str]:
    for error, count in figures.errors.items():
        yield f"  {figures.level}: {count} of {figures.calls} calls failed: {error}"
    if figures.other_load is not None and figures.other_load > QUIET:
        yield f"{LOUD}  {figures.level}: the machine was busy; do not rely on the times"
    if figures.late and figures.late.p99_ms > LATE * figures.latency.p50_ms:
        late = text(figures.late.p99_ms, ".1f")
        yield f"{LOUD}  {figures.level}: the load generator itself was late by {late} ms (p99)"
