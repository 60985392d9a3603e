"""Turns what `make perf-gpu` measured into tables for people and one JSON object for programs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from rich.console import Console

from triton_rerank_bench import report
from triton_rerank_bench.gpu_device import Device
from triton_rerank_bench.gpu_figures import ModelFigures, TriedSetting, WorkloadFigures
from triton_rerank_bench.gpu_peer import BatchSize
from triton_rerank_bench.load import LoadFigures


def gpu_json(device: Device, models: Sequence[ModelFigures], settings: report.Json) -> report.Json:
    """The report as plain data: date, machine, device, versions, settings, figures."""
    version = models[0].triton_version if models else None
    return {
        **report.header("gpu", version, settings),
        "device": dataclasses.asdict(device),
        "models": [dataclasses.asdict(model) for model in models],
    }


def print_device(console: Console, device: Device) -> None:
    """Write what computes, and what to know of it."""
    if device.kind == "cpu":
        console.print(f"device: CPU, {device.name}")
    else:
        console.print(
            f"device: {device.name}, {device.memory_mib:,} MiB, compute capability {device.compute_capability}, "
            f"{device.power_limit_w} W, SM clock to {device.max_sm_clock_mhz} MHz; driver {device.driver}, "
            f"torch for CUDA {device.cuda}"
        )
    if device.note:
        console.print(f"[red]{device.note}[/red]")


def print_model(console: Console, model: ModelFigures) -> None:
    """Write one model's figures."""
    console.print(
        f"\n[bold]{model.shape}[/bold], weights: {model.weights}, {model.precision} beside bf16, max_length "
        f"{model.max_length}, Triton {model.triton_version}; served with {model.setting}"
    )
    if model.other_load > report.QUIET:
        console.print(f"[red]other processes used {model.other_load:.0%} of the cores: measure again[/red]")
    console.print(report.table("settings tried, passages", ["setting", "pairs/s"], map(_tried, model.tried)))
    for workload in model.workloads:
        _print_workload(console, workload)
    memory = model.memory
    if memory.server_mib is not None:
        console.print(f"Device memory: server {memory.server_mib:,} MiB, torch {memory.peer_mib or 0:,} MiB")
    console.print("the change of the exported configs:\n" + model.config_change, markup=False, highlight=False)
    console.print(report.targets_table(model.targets))


def _tried(tried: TriedSetting) -> tuple[str, str]:
    return tried.setting, tried.refused.splitlines()[0] if tried.refused else f"{tried.pairs_per_s:,.1f}"


def _print_workload(console: Console, workload: WorkloadFigures) -> None:
    report.print_timings(console, workload.speed)
    for agreement in workload.to_reference:
        console.print(f"  order of {agreement.second} beside {agreement.first}: tau {agreement.kendall_tau:.4f}")
    for what, tried in (("one list", workload.batch_sizes), ("all lists", workload.bulk_batch_sizes)):
        console.print(f"  sentence-transformers, {what}, pairs/s by batch size: {_sizes(tried)}")
    columns = ["callers", "pairs/s", "tokens/s", "p50 ms", "p99 ms", "rows/execution", "padded/real", "errors"]
    title = f"{workload.speed.workload}: served under load"
    console.print(report.table(title, columns, map(_level, workload.levels)))
    found = workload.capacity
    console.print(
        f"  most pairs/s in turns: served {statistics.median(found.served_pairs_per_s):,.1f} ({found.concurrency} "
        f"callers), sentence-transformers bf16 {statistics.median(found.peer_pairs_per_s):,.1f} (batch "
        f"{found.peer_batch_size}); ratio {found.ratio.median:.3f} ({found.ratio.min:.3f} to {found.ratio.max:.3f})"
    )


def _sizes(tried: Sequence[BatchSize]) -> str:
    return ", ".join(
        f"{size.batch_size}: " + ("no room" if size.pairs_per_s is None else f"{size.pairs_per_s:,.1f}")
        for size in tried
    )


def _level(level: LoadFigures) -> tuple[str, ...]:
    return (
        str(level.concurrency),
        f"{level.pairs_per_s:,.1f}",
        f"{level.tokens_per_s:,.0f}",
        f"{level.latency.p50_ms:.2f}",
        f"{level.latency.p99_ms:.2f}",
        _or_dash(level.rows_per_execution, ".1f"),
        _or_dash(level.padded_over_real, ".2f"),
        ", ".join(f"{count} {name}" for name, count in level.errors.items()) or "none",
    )


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
