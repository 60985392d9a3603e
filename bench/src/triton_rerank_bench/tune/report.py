"""The report of a tuning run: the answer, what to change, what was measured; Markdown, one JSON line and two plots."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Mapping

from triton_rerank_bench import plots
from triton_rerank_bench.machine import describe_machine, today
from triton_rerank_bench.report import Files, Json, Report, Table, compact
from triton_rerank_bench.tune.answer import Exported, answer_lines, change_lines, machine_lines, setting_text
from triton_rerank_bench.tune.findings import Row, Stage, Tuning

REPORT, LINE, LATENCY_PLOT, SIZES_PLOT = "report.md", "report.json", "latency-throughput.png", "throughput-batch.png"
FILES = (REPORT, LINE, LATENCY_PLOT, SIZES_PLOT)

_FIGURES = {
    "callers": "at.concurrency", "calls": "at.calls", "failed": "at.failed", "pairs/s": "at.pairs_per_s:,.1f",
    "tokens/s": "at.tokens_per_s:,.0f", "p50 ms": "at.latency.p50_ms:,.1f", "p99 ms": "at.latency.p99_ms:,.1f",
}  # fmt: skip
_SERVER = {
    "queue ms": "at.queue_ms:.2f", "merged": "at.requests_per_execution:.2f", "padding": "at.padded_over_real:.2f",
}  # fmt: skip
# Ratios are to the exported setting just before and after, or in the same round, so that a machine that grows slower
# hurts nobody.
_STAGES: dict[Stage, tuple[str, dict[str, str], dict[str, str]]] = {  # title, columns before the figures and after them
    "exported": ("as exported", {"": "name"}, _SERVER),
    "sizes": ("as exported, throughput against batch size", {"": "name", "pairs a call": "pairs"}, {}),
    "knobs": ("other settings, one knob at a time", {"": "setting"}, {"/ exported": "ratio:.3f", "result": "result"}),
    "confirmation": ("the best one and the exported one, in turns", {"": "setting"}, {"ratio": "ratio:.3f"}),
    "open loop": ("the answer under calls at random times", {"": "setting", "calls/s": "at.rate:,.2f"}, {}),
}
_LEVEL_NOTE = (
    "A call is one list of the workload. Of fewer than 100 calls, p99 is the slowest one. queue: Triton's own mean, "
    "of the encoder. merged: requests a batch. padding: padded over real tokens."
)


def perf_report(
    tuning: Tuning,
    model: str,
    exported: Mapping[str, Exported],
    options: argparse.Namespace,
    triton_version: str | None,
    diff: str,
) -> Report:
    """The answer first, then how to get it, then what was measured; the diff is from the exported configs to it.

    Of the options these are told: workload, seed, quick.
    """
    answer = tuning.answer()
    assert answer is not None
    told = [*answer_lines(tuning, answer), *machine_lines(tuning, answer)]
    changes = change_lines(answer, model, exported)
    figures: Json = {
        "model": model,
        "precisions": {label: each.precision for label, each in exported.items()},
        "engines": {label: each.engine for label, each in exported.items()},
        "workload": options.workload,
        **vars(tuning),
        "noise": tuning.noise,
        "answer": answer,
        "summary": told,
        "changes": changes,
        "config_diff": diff,
    }
    effort = (
        f"{tuning.elapsed_s:,.0f} s of a budget of {tuning.schedule.budget_s:,.0f} s, {tuning.schedule.level_s:g} s a "
        f"closed loop, {len(tuning.rows)} measurements."
    )
    parts: list[str | Table] = [
        *tables(tuning),
        _LEVEL_NOTE,
        effort,
        *([f"Not tried, for want of time: {'; '.join(tuning.not_tried)}."] if tuning.not_tried else []),
    ]
    settings: Json = {"seed": options.seed, "knobs": list(tuning.wanted.knobs), "quick": options.quick}
    return Report(
        "perf", triton_version, settings, figures, parts,
        summary=[*told, "What to change:", *(f"  {line}" for line in changes)],
        other_load=tuning.other_load, interrupted=tuning.interrupted,
    )  # fmt: skip


def perf_files(tuning: Tuning, report: Report) -> Files:
    """The whole report, with where it ran, as one JSON line, and the plots."""
    machine, told = describe_machine(), report.figures
    where = f"{machine.cpu}, {machine.cores} cores"
    caption = (
        f"{told['model']}, calls of {tuning.pairs_per_call:,.0f} pairs ({told['workload']}), Triton "
        f"{report.triton_version}\n{where}, {today()}{', interrupted' if tuning.interrupted else ''}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
    latency, sizes = "latency against throughput", "throughput against batch size"
    markdown = report.markdown(
        f"{told['model']}: {told['workload']}, tuned on {today()}",
        f"![{latency}]({LATENCY_PLOT})\n",
        f"![{sizes}]({SIZES_PLOT})\n",
        *([f"```diff\n{told['config_diff']}```\n"] if told["config_diff"] else []),
        f"## Where\n\n- {where} ({', '.join(machine.cpu_flags)}), {machine.memory_gib:g} GiB, {machine.system}\n"
        f"- {versions}\n- `{shlex.join(['triton-rerank-bench', *sys.argv[1:]])}`",
    )
    return {
        LATENCY_PLOT: lambda path: plots.plot_latency(tuning, path, f"{told['model']}: {latency}", caption),
        SIZES_PLOT: lambda path: plots.plot_sizes(tuning, path, f"{told['model']}: {sizes}", caption),
        LINE: compact(report.json()) + "\n",
        REPORT: markdown,
    }


def tables(tuning: Tuning) -> list[Table]:
    """What was measured, stage by stage."""
    usual = statistics.median(tuning.repeats) if tuning.repeats else None
    exported, of_rounds = {setting.repository: setting for setting in tuning.swept()}, iter(tuning.ratios)

    def row(each: Row) -> Json:
        """Its setting by what differs from the exported one."""
        ratio = each.figures.pairs_per_s / each.drift / usual if each.figures and usual else None
        if each.stage == "confirmation":
            ratio = next(of_rounds, None) if each.setting == tuning.best else 1.0
        return {
            "name": each.setting.repository,
            "setting": setting_text(each.setting, exported[each.setting.repository]),
            "at": each.figures,
            "pairs": each.pairs,
            "ratio": ratio,
            "result": f"{each.why}{', kept' if each.kept else ''}",
        }

    found = []
    for stage, (title, before, after) in _STAGES.items():
        rows = [row(each) for each in tuning.rows if each.stage == stage]
        found += [Table(title, {**before, **_FIGURES, **after}, rows)] if rows else []
    return found
