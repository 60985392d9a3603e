"""The report of a tuning run: the answer, what to change, what was measured; Markdown, one JSON line and two plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_bench import plots
from triton_rerank_bench.machine import describe_machine, today
from triton_rerank_bench.report import LOUD, Json, Report, Table, compact, others, publish
from triton_rerank_bench.tune.answer import Exported, answer_lines, change_lines, machine_lines, value_text
from triton_rerank_bench.tune.choice import operating_point
from triton_rerank_bench.tune.findings import Confirmation, Trial, Tuning

REPORT, LINE, LATENCY_PLOT, SIZES_PLOT = "report.md", "report.json", "latency-throughput.png", "throughput-batch.png"
FILES = (REPORT, LINE, LATENCY_PLOT, SIZES_PLOT)

_LATENCIES = {"p50 ms": "at.latency.p50_ms:,.1f", "p99 ms": "at.latency.p99_ms:,.1f"}
_CALLS = {
    "callers": "at.concurrency", "calls": "at.calls", "pairs/s": "at.pairs_per_s:,.1f",
    "tokens/s": "at.tokens_per_s:,.0f",
}  # fmt: skip
_FAILED = {"failed": "at.failed"}
_SERVER = {
    "queue ms": "at.queue_ms:.2f", "merged": "at.requests_per_execution:.2f", "padding": "at.padded_over_real:.2f",
}  # fmt: skip
_LEVEL_NOTE = (
    "A call is one list of the workload. Of fewer than 100 calls, p99 is the slowest one. queue: Triton's own mean, "
    "of the encoder. merged: requests a batch. padding: padded over real tokens."
)


@dataclass(frozen=True)
class About:
    """What a report says besides the figures; the diff is of config.pbtxt, from the exported setting to the answer."""

    model: str
    exported: Mapping[str, Exported]
    workload: str
    pairs_per_call: float
    triton_version: str | None
    command: str
    settings: Json
    diff: str


def perf_report(tuning: Tuning, about: About) -> Report:
    """The answer first, then how to get it, then what was measured."""
    answer, told = tuning.answer(), [*answer_lines(tuning), *machine_lines(tuning)]
    changes = change_lines(tuning, about.model, about.exported)
    figures: Json = {
        "model": about.model,
        "precisions": {label: each.precision for label, each in about.exported.items()},
        "engines": {label: each.engine for label, each in about.exported.items()},
        "workload": about.workload,
        "pairs_per_call": about.pairs_per_call,
        **vars(tuning),
        "noise": tuning.noise,
        "answer": answer,
        "summary": told,
        "changes": changes,
        "config_diff": about.diff,
    }
    summary = [
        *([f"{LOUD}Interrupted: this is what was measured until then."] if tuning.interrupted else []),
        *told,
        "What to change:",
        *(f"  {line}" for line in changes),
    ]
    parts: list[str | Table] = [
        *tables(tuning),
        _LEVEL_NOTE,
        _effort(tuning),
        others(tuning.other_load),
        *([f"Not tried, for want of time: {'; '.join(tuning.not_tried)}."] if tuning.not_tried else []),
    ]
    return Report("perf", about.triton_version, about.settings, figures, parts, summary)


def write_report(folder: Path, tuning: Tuning, about: About, report: Report) -> list[Path]:
    """Write all four files, then put them in place of older ones."""
    caption = _caption(tuning, about)
    latency, sizes = (
        f"{about.model}: {what}" for what in ("latency against throughput", "throughput against batch size")
    )
    return publish(
        folder,
        {
            LATENCY_PLOT: lambda path: plots.plot_latency(tuning, path, title=latency, caption=caption),
            SIZES_PLOT: lambda path: plots.plot_sizes(tuning.sweeps, path, title=sizes, caption=caption),
            LINE: compact(report.json()) + "\n",
            REPORT: markdown(report, about),
        },
    )


def markdown(report: Report, about: About) -> str:
    """The whole report, with the plots and where it ran."""
    machine = describe_machine()
    where = f"{machine.cpu}, {machine.cores} cores ({', '.join(machine.cpu_flags)}), {machine.memory_gib:g} GiB, "
    versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
    return report.markdown(
        f"{about.model}: {about.workload}, tuned on {today()}",
        f"![latency against throughput]({LATENCY_PLOT})\n",
        f"![throughput against batch size]({SIZES_PLOT})\n",
        *([f"```diff\n{about.diff}```\n"] if about.diff else []),
        f"## Where\n\n- {where}{machine.system}\n- {versions}\n- `{about.command}`",
    )


def tables(tuning: Tuning) -> list[Table]:
    """Exported settings, trials, confirmation and open loops."""
    levels = [{"name": each.setting.repository, "at": level} for each in tuning.sweeps for level in each.levels]
    sizes = [
        {"name": each.setting.repository, "pairs": of_size.pairs, "at": of_size.figures}
        for each in tuning.sweeps
        for of_size in each.sizes
    ]
    found = [
        Table("as exported", {"": "name", **_CALLS, **_FAILED, **_LATENCIES, **_SERVER}, levels),
        Table(
            "as exported, throughput against batch size",
            {"": "name", "pairs a call": "pairs", **_CALLS, **_LATENCIES},
            sizes,
        ),
    ]
    if tuning.trials:
        found.append(_trials(tuning))
    if tuning.confirmation is not None:
        found.append(_confirmation(tuning.confirmation))
    if tuning.open_loops:
        columns = {"share of the capacity": "share:.0%", "calls/s": "at.rate:,.2f", **_CALLS, **_LATENCIES, **_FAILED}
        rows = [{"share": loop.share, "at": loop.figures} for loop in tuning.open_loops]
        found.append(Table("the answer under calls at random times (open loop)", columns, rows))
    return found


def _trials(tuning: Tuning) -> Table:
    """Ratios are to the exported setting just before and after, so that a machine that grows slower hurts nobody."""
    columns = {
        "knob": "knob", "value": "value", "beside": "beside", "callers": "point.concurrency", "calls": "point.calls",
        "pairs/s": "point.pairs_per_s:,.1f", "/ exported": "ratio:.3f", "p99 ms": "point.latency.p99_ms:,.1f",
        "result": "why",
    }  # fmt: skip
    return Table("other settings, one knob at a time", columns, [_trial(trial, tuning) for trial in tuning.trials])


def _trial(trial: Trial, tuning: Tuning) -> Json:
    changed = trial.instead_of.changes_from(tuning.exported)
    point = operating_point(trial.levels, tuning.wanted.p99_ms) if trial.levels else None
    usual = statistics.median(tuning.repeats) if tuning.repeats else None
    return {
        "knob": trial.knob,
        "value": value_text(getattr(trial.setting, trial.knob)),
        "beside": ", ".join(f"{name} {value_text(new)}" for name, (_, new) in changed.items()) or "as exported",
        "point": point,
        "ratio": point.pairs_per_s / trial.drift / usual if point and usual else None,
        "why": trial.why,
    }


def _confirmation(confirmation: Confirmation) -> Table:
    rows = [
        {"round": number, "old": old, "best": best, "ratio": ratio}
        for number, (best, old, ratio) in enumerate(
            zip(confirmation.best, confirmation.exported, confirmation.ratios, strict=False), 1
        )
    ]
    columns = {
        "round": "round", "exported, pairs/s": "old.pairs_per_s:,.1f", "best, pairs/s": "best.pairs_per_s:,.1f",
        "ratio": "ratio:.3f", "exported, p99 ms": "old.latency.p99_ms:,.1f", "best, p99 ms": "best.latency.p99_ms:,.1f",
    }  # fmt: skip
    return Table("the best one and the exported one, in turns", columns, rows)


def _effort(tuning: Tuning) -> str:
    return (
        f"{tuning.elapsed_s:,.0f} s of a budget of {tuning.budget_s:,.0f} s, {tuning.level_s:g} s a closed loop, "
        f"{len(tuning.sweeps)} exported settings and {len(tuning.trials)} others."
    )


def _caption(tuning: Tuning, about: About) -> str:
    machine = describe_machine()
    cut = ", interrupted" if tuning.interrupted else ""
    return (
        f"{about.model}, calls of {about.pairs_per_call:,.0f} pairs ({about.workload}), Triton {about.triton_version}\n"
        f"{machine.cpu}, {machine.cores} cores, {today()}{cut}"
    )
