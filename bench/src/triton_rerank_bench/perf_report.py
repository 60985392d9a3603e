"""The report of a tuning run: Markdown for people, one JSON line for programs, and what the terminal shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from triton_rerank_bench import plots, report
from triton_rerank_bench.choice import operating_point
from triton_rerank_bench.load import LoadFigures
from triton_rerank_bench.machine import describe_machine, installed_versions, today
from triton_rerank_bench.perf_answer import answer_lines, change_lines, machine_lines, ms_text, value_text
from triton_rerank_bench.report_folder import ReportFolder
from triton_rerank_bench.tuning import Confirmation, Trial, Tuning

REPORT, LINE, LATENCY_PLOT, SIZES_PLOT = "report.md", "report.json", "latency-throughput.png", "throughput-batch.png"
FILES = (REPORT, LINE, LATENCY_PLOT, SIZES_PLOT)

_LEVEL_COLUMNS = ["", "callers", "calls", "pairs/s", "tokens/s", "p50 ms", "p99 ms", "queue ms", "merged", "padding"]
_LEVEL_NOTE = (
    "A call is one list of the workload. Of fewer than 100 calls, p99 is the slowest one. queue: Triton's own mean, "
    "of the encoder. merged: requests a batch. padding: padded over real tokens."
)


@dataclass(frozen=True)
class About:
    """What a report says besides the figures.

    Attributes:
        model: public model name.
        precisions: of the repositories, by label.
        engines: likewise.
        workload: name.
        pairs_per_call: mean over the workload's lists.
        triton_version: as the server says.
        command: that was given.
        settings: of the command, for the JSON.
        diff: of config.pbtxt, from the exported setting to the answer; empty if there is none.
    """

    model: str
    precisions: dict[str, str]
    engines: dict[str, str]
    workload: str
    pairs_per_call: float
    triton_version: str | None
    command: str
    settings: report.Json
    diff: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def perf_json(tuning: Tuning, about: About) -> report.Json:
    """The report as plain data: date, machine, versions, settings, all figures, the answer."""
    answer = tuning.answer()
    document = {
        **report.header("perf", about.triton_version, about.settings),
        "model": about.model,
        "precisions": about.precisions,
        "engines": about.engines,
        "workload": about.workload,
        "pairs_per_call": about.pairs_per_call,
        **dataclasses.asdict(tuning),
        "noise": tuning.noise,
        "answer": dataclasses.asdict(answer) if answer else None,
        "summary": [*answer_lines(tuning), *machine_lines(tuning)],
        "config_diff": about.diff,
    }
    finite = _finite(document)
    assert isinstance(finite, dict)
    return finite


def write_report(folder: ReportFolder, tuning: Tuning, about: About, document: report.Json) -> list[Path]:
    """Write all four files, then put them in place of older ones.

    Args:
        folder: opened.
        tuning: with one level at least.
        about: the rest.
        document: from `perf_json`.

    Returns:
        The files.
    """
    caption = _caption(tuning, about)
    plots.plot_latency(
        tuning, folder.path(LATENCY_PLOT), title=f"{about.model}: latency against throughput", caption=caption
    )
    plots.plot_sizes(
        tuning.sweeps, folder.path(SIZES_PLOT), title=f"{about.model}: throughput against batch size", caption=caption
    )
    folder.path(LINE).write_text(report.compact(document) + "\n", encoding="utf-8")
    folder.path(REPORT).write_text(markdown(tuning, about), encoding="utf-8")
    return folder.publish()


def print_tuning(console: Console, tuning: Tuning, about: About) -> None:
    """Write the tables, the answer and the change to make."""
    for table in _tables(tuning):
        console.print(report.table(table.title, table.columns, table.rows))
    console.print(_LEVEL_NOTE)
    console.print(_effort(tuning))
    for line in (*answer_lines(tuning), *machine_lines(tuning)):
        console.print(line, style="bold", markup=False, highlight=False)
    for line in (*_changes(tuning, about), *about.diff.splitlines()):
        console.print(line, markup=False, highlight=False)


def markdown(tuning: Tuning, about: About) -> str:
    """The whole report."""
    machine = describe_machine()
    versions = installed_versions() | ({"tritonserver": about.triton_version} if about.triton_version else {})
    parts = [f"# {about.model}: {about.workload}, tuned on {today()}\n"]
    if tuning.interrupted:
        parts.append("**Interrupted: this is what was measured until then.**\n")
    parts.append(_bullets([*answer_lines(tuning), *machine_lines(tuning)]))
    parts.append("## What to change\n")
    parts.append(_bullets(_changes(tuning, about)))
    if about.diff:
        parts.append(f"```diff\n{about.diff}```\n")
    parts.append(f"## What was measured\n\n{_effort(tuning)}\n")
    parts += [f"![latency against throughput]({LATENCY_PLOT})\n", f"![throughput against batch size]({SIZES_PLOT})\n"]
    parts += [_markdown_table(table) for table in _tables(tuning)]
    parts.append(_LEVEL_NOTE + "\n")
    if tuning.not_tried:
        parts.append(f"Not tried, for want of time: {'; '.join(tuning.not_tried)}.\n")
    parts.append("## Where\n")
    parts.append(
        _bullets(
            [
                f"{machine.cpu}, {machine.cores} cores ({', '.join(machine.cpu_flags)}), "
                f"{machine.memory_gib:g} GiB, {machine.system}",
                ", ".join(f"{name} {version}" for name, version in versions.items()),
                f"`{about.command}`",
            ]
        )
    )
    return "\n".join(parts)


def _changes(tuning: Tuning, about: About) -> list[str]:
    answer = tuning.answer()
    if answer is None:
        return []
    label = answer.setting.repository
    lines = change_lines(answer, about.model, about.precisions[label], about.engines[label])
    return lines or [f"Nothing: serve {answer.setting.repository} as it was exported."]


def _effort(tuning: Tuning) -> str:
    other = f"; other processes used {tuning.other_load:.0%} of the cores meanwhile"
    loud = "" if tuning.other_load <= report.QUIET else ": do not rely on the figures, measure again on a quiet machine"
    return (
        f"{tuning.elapsed_s:,.0f} s of a budget of {tuning.budget_s:,.0f} s, {tuning.level_s:g} s a closed loop, "
        f"{len(tuning.sweeps)} exported settings and {len(tuning.trials)} others{other}{loud}."
    )


def _tables(tuning: Tuning) -> list[Table]:
    tables = [
        Table(
            "as exported",
            _LEVEL_COLUMNS,
            [_level_row(sweep.setting.repository, figures) for sweep in tuning.sweeps for figures in sweep.levels],
        ),
        Table(
            "as exported, throughput against batch size",
            ["", "pairs a call", "callers", "calls", "pairs/s", "tokens/s", "p50 ms", "p99 ms"],
            [
                (sweep.setting.repository, str(each.pairs), *_level_row("", each.figures)[1:7])
                for sweep in tuning.sweeps
                for each in sweep.sizes
            ],
        ),
    ]
    if tuning.trials:
        tables.append(_trials_table(tuning))
    if tuning.confirmation is not None:
        tables.append(_confirmation_table(tuning.confirmation))
    if tuning.open_loops:
        rows = [_open_row(loop.share, loop.figures) for loop in tuning.open_loops]
        columns = ["share of the capacity", "calls/s", "calls", "pairs/s", "p50 ms", "p99 ms", "failed"]
        tables.append(Table("the answer under calls at random times (open loop)", columns, rows))
    return tables


def _trials_table(tuning: Tuning) -> Table:
    """Ratios are to the exported setting just before and after, so that a machine that grows slower hurts nobody."""
    columns = ["knob", "value", "beside", "callers", "calls", "pairs/s", "/ exported", "p99 ms", "result"]
    return Table("other settings, one knob at a time", columns, [_trial_row(trial, tuning) for trial in tuning.trials])


def _trial_row(trial: Trial, tuning: Tuning) -> list[str]:
    value = value_text(getattr(trial.setting, trial.knob))
    others = trial.instead_of.changes_from(tuning.exported)
    beside = ", ".join(f"{name} {value_text(new)}" for name, (_, new) in others.items()) or "as exported"
    if not trial.levels:
        return [trial.knob, value, beside, *["–"] * 5, trial.why]
    point = operating_point(trial.levels, tuning.wanted.p99_ms)
    usual = sorted(tuning.repeats)[len(tuning.repeats) // 2]
    return [
        trial.knob,
        value,
        beside,
        str(point.concurrency),
        str(point.calls),
        f"{point.pairs_per_s:,.1f}",
        f"{point.pairs_per_s / trial.drift / usual:.3f}",
        ms_text(point.latency.p99_ms),
        trial.why,
    ]


def _confirmation_table(confirmation: Confirmation) -> Table:
    rows = []
    for number, (best, old) in enumerate(zip(confirmation.best, confirmation.exported, strict=False), 1):
        rows.append(
            [
                str(number),
                *(f"{figures.pairs_per_s:,.1f}" for figures in (old, best)),
                f"{best.pairs_per_s / old.pairs_per_s:.3f}",
                *(ms_text(figures.latency.p99_ms) for figures in (old, best)),
            ]
        )
    columns = ["round", "exported, pairs/s", "best, pairs/s", "ratio", "exported, p99 ms", "best, p99 ms"]
    return Table("the best one and the exported one, in turns", columns, rows)


def _level_row(name: str, figures: LoadFigures) -> list[str]:
    failed = f" ({sum(figures.errors.values())} failed)" if figures.errors else ""
    return [
        name,
        str(figures.concurrency),
        f"{figures.calls}{failed}",
        f"{figures.pairs_per_s:,.1f}",
        f"{figures.tokens_per_s:,.0f}",
        ms_text(figures.latency.p50_ms),
        ms_text(figures.latency.p99_ms),
        *(_or_dash(value) for value in (figures.queue_ms, figures.requests_per_execution, figures.padded_over_real)),
    ]


def _open_row(share: float, figures: LoadFigures) -> list[str]:
    return [
        f"{share:.0%}",
        f"{figures.rate or 0:,.2f}",
        str(figures.calls),
        f"{figures.pairs_per_s:,.1f}",
        ms_text(figures.latency.p50_ms),
        ms_text(figures.latency.p99_ms),
        str(sum(figures.errors.values())),
    ]


def _caption(tuning: Tuning, about: About) -> str:
    machine = describe_machine()
    cut = ", interrupted" if tuning.interrupted else ""
    return (
        f"{about.model}, calls of {about.pairs_per_call:,.0f} pairs ({about.workload}), Triton {about.triton_version}\n"
        f"{machine.cpu}, {machine.cores} cores, {today()}{cut}"
    )


def _markdown_table(table: Table) -> str:
    columns = [column or " " for column in table.columns]
    lines = [_markdown_row(columns), _markdown_row(["---"] + ["---:"] * (len(columns) - 1))]
    return "\n".join([f"### {table.title}\n", *lines, *(_markdown_row(row) for row in table.rows), ""])


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def _finite(value: object) -> object:
    """JSON has no infinity, which is the latency of calls that were never answered."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
