"""Turns measurements into tables for people and one JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from triton_rerank_bench.machine import describe_machine, installed_versions, today
from triton_rerank_bench.rounds import Ratio, WorkloadSpeed
from triton_rerank_bench.speed import SpeedReport, Target

QUIET = 0.05  # share of the cores that others may use before times mean little

Json = dict[str, object]
_VERDICTS = {True: "[green]pass[/green]", False: "[red]MISS[/red]", None: "not measured here"}


def speed_json(report: SpeedReport, settings: Json) -> Json:
    """The speed report as plain data: date, machine, versions, settings, figures, targets."""
    return {**header("speed", report.triton_version, settings), **dataclasses.asdict(report)}


def compact(document: Mapping[str, object]) -> str:
    """One line of JSON."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def indented(document: Mapping[str, object]) -> str:
    """JSON for a file that people read too, with a newline at the end."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def print_speed(console: Console, report: SpeedReport) -> None:
    """Write the figures of each workload, the server's memory and the targets."""
    machine = describe_machine()
    console.print(
        f"{report.model} {report.precision}, max_length {report.max_length}, Triton {report.triton_version}; "
        f"{machine.cpu}, {report.n_threads} threads each, {report.n_rounds} rounds"
    )
    quiet = report.other_load <= QUIET
    console.print(
        f"Other processes used {report.other_load:.0%} of the cores meanwhile"
        + ("" if quiet else "; [red]do not rely on the times: measure again on a quiet machine[/red]")
    )
    for workload in report.workloads:
        print_timings(console, workload)
    floor = report.floor
    console.print(
        f"Linear layers of the 100 pairs alone, in bf16: {floor.seconds:.3f} s at {floor.tflops:.2f} TFLOP/s; served "
        f"takes {_ratio_text(floor.served)} times that"
    )
    _print_list_sizes(console, report)
    _print_memory(console, report)
    console.print(targets_table(report.targets))


def header(kind: str, triton_version: str | None, settings: Json) -> Json:
    """What every report begins with: its kind, date, machine, versions and settings."""
    versions = installed_versions() | ({"tritonserver": triton_version} if triton_version else {})
    return {
        "kind": kind,
        "date": today(),
        "machine": dataclasses.asdict(describe_machine()),
        "versions": versions,
        "settings": settings,
    }


def print_timings(console: Console, workload: WorkloadSpeed) -> None:
    """Write seconds, ratios and agreements of one workload."""
    tokens = workload.tokens
    title = (
        f"{workload.workload}: {tokens.pairs} pairs, {tokens.total:,} tokens (mean {tokens.mean:.1f}, "
        f"longest {tokens.longest}, {tokens.tokens_per_word:.2f} a word)"
    )
    rows = (
        (
            t.contestant,
            f"{t.median_s:.4f}",
            f"{t.min_s:.4f}",
            f"{t.max_s:.4f}",
            f"{t.pairs_per_s:,.1f}",
            f"{t.tokens_per_s:,.0f}",
        )
        for t in workload.timings
    )
    console.print(table(title, ["contestant", "median s", "min s", "max s", "pairs/s", "tokens/s"], rows))
    for ratio in workload.ratios:
        console.print(f"  {ratio.numerator} / {ratio.denominator}: {_ratio_text(ratio)}")
    for agreement in workload.agreements:
        console.print(f"  order of {agreement.first} and {agreement.second}: Kendall tau {agreement.kendall_tau:.4f}")


def _ratio_text(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} ({ratio.min:.3f} to {ratio.max:.3f})"


def _print_list_sizes(console: Console, report: SpeedReport) -> None:
    rows = (
        (
            f"{size.documents:,}",
            f"{size.tokens:,}",
            f"{size.us_per_token:.1f}",
            _ratio_text(size.over_reference),
        )
        for size in report.list_sizes
    )
    columns = ["documents", "tokens", "µs / token", "/ that of 100 documents"]
    console.print(table("served lists of several sizes", columns, rows))


def _print_memory(console: Console, report: SpeedReport) -> None:
    memory = report.server_memory
    parts = ", ".join(f"{process.name} {process.pss_bytes / 1e6:.0f}" for process in memory.processes)
    console.print(
        f"Peak server memory: {memory.pss_bytes / 1e6:.0f} MB = {parts}; sum of PSS (shared pages counted once) of "
        f"tritonserver and its children, largest of {memory.samples} samples"
    )


def targets_table(targets: Sequence[Target]) -> Table:
    """Each target with what was measured."""
    rows = ((target.text, f"{target.value:.3f}", _VERDICTS[target.passed]) for target in targets)
    return table("targets", ["target", "measured", "verdict"], rows)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Rows of text; the first column to the left, the others to the right."""
    grid = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    return grid
