"""Tables and JSON of a server under load."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from triton_rerank_bench.load import LoadFigures
from triton_rerank_bench.machine import describe_machine
from triton_rerank_bench.report import QUIET, Json, header, table

LATE = 0.1  # of the median latency, that the load generator's own delay may be before figures mean little
NOT_KNOWN = "–"


@dataclass(frozen=True)
class LoadReport:
    """Everything that one run measured.

    Attributes:
        model: public model name.
        precision: of the served model.
        max_length: tokens of the longest pair.
        triton_version: as the server says.
        levels: workload by workload.
        interrupted: by the user; levels are those that had ended.
    """

    model: str
    precision: str
    max_length: int
    triton_version: str
    levels: list[LoadFigures]
    interrupted: bool = False


def load_json(report: LoadReport, settings: Json) -> Json:
    """The report as plain data: date, machine, versions, settings, levels."""
    plain = {**dataclasses.asdict(report), "levels": [figures_json(figures) for figures in report.levels]}
    return {**header("load", report.triton_version, settings), **plain}


def figures_json(figures: LoadFigures) -> Json:
    """One level as plain data; latencies of a level that had no answer are null, since JSON knows no infinity."""
    plain = dataclasses.asdict(figures)
    for name in ("latency", "late"):
        if plain[name]:
            plain[name] = {key: value if math.isfinite(value) else None for key, value in plain[name].items()}
    return plain


def print_load(console: Console, report: LoadReport) -> None:
    """Write what callers saw and what the server did, workload by workload."""
    is_here = any(figures.other_load is not None for figures in report.levels)
    machine = describe_machine()
    where = f"{machine.cpu}, {machine.cores} cores" if is_here else "a server that ran already"
    console.print(
        f"{report.model} {report.precision}, max_length {report.max_length}, Triton {report.triton_version}; {where}"
    )
    for workload, levels in itertools.groupby(report.levels, key=lambda figures: figures.workload):
        _print_workload(console, workload, list(levels))
    console.print(
        "Open loop: latency counts from the intended start of a call, and late is the part of it before the call was "
        "made (p99). queue, compute: Triton's own, mean a request of the encoder. merged: requests an execution. "
        "padding: padded over real tokens of the encoder's tensors. others: share of the cores that other processes "
        "used meanwhile."
    )


def _print_workload(console: Console, workload: str, levels: Sequence[LoadFigures]) -> None:
    columns = ["level", "calls", "failed", "pairs/s", "tokens/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "late ms"]
    console.print(table(f"{workload}: what callers saw", columns, map(_callers_row, levels)))
    columns = ["level", "queue ms", "compute ms", "merged", "rows/execution", "padding", "memory MB", "others"]
    console.print(table(f"{workload}: what the server did", columns, map(_server_row, levels)))
    for figures in levels:
        for error, count in figures.errors.items():
            console.print(f"  {_level(figures)}: {count} of {figures.calls} calls failed: {error}")
        if figures.other_load is not None and figures.other_load > QUIET:
            console.print(f"  {_level(figures)}: [red]the machine was busy; do not rely on the times[/red]")
        if figures.late and figures.late.p99_ms > LATE * figures.latency.p50_ms:
            late = f"[red]the load generator itself was late by {figures.late.p99_ms:.1f} ms (p99)[/red]"
            console.print(f"  {_level(figures)}: {late}")


def _callers_row(figures: LoadFigures) -> list[str]:
    latency = figures.latency
    return [
        _level(figures),
        str(figures.calls),
        str(sum(figures.errors.values())),
        f"{figures.pairs_per_s:,.1f}",
        f"{figures.tokens_per_s:,.0f}",
        *(_milliseconds(ms) for ms in (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms)),
        _milliseconds(figures.late.p99_ms if figures.late else None),
    ]


def _server_row(figures: LoadFigures) -> list[str]:
    memory = figures.peak_memory_bytes
    ratios = (figures.requests_per_execution, figures.rows_per_execution, figures.padded_over_real)
    return [
        _level(figures),
        _milliseconds(figures.queue_ms),
        _milliseconds(figures.compute_ms),
        *(NOT_KNOWN if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        NOT_KNOWN if memory is None else f"{memory / 1e6:.0f}",
        NOT_KNOWN if figures.other_load is None else f"{figures.other_load:.0%}",
    ]


def _level(figures: LoadFigures) -> str:
    return f"closed, {figures.concurrency}" if figures.mode == "closed" else f"open, {figures.rate:.3g}/s"


def _milliseconds(value: float | None) -> str:
    return NOT_KNOWN if value is None or not math.isfinite(value) else f"{value:,.1f}"
