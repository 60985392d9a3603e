"""Tables and JSON of the two measurements of the client: what it costs, and what splitting does."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from triton_rerank_bench.client_cost import ClientCostReport, Cost, Spread
from triton_rerank_bench.machine import describe_machine
from triton_rerank_bench.report import QUIET, Json, header, table, targets_table
from triton_rerank_bench.splitting import SetFigures, SplittingReport
from triton_rerank_bench.strategies import STRATEGIES, ListFigures


def client_cost_json(report: ClientCostReport, settings: Json) -> Json:
    """The report on the client's cost as plain data: date, machine, versions, settings, figures, targets."""
    return {**header("client", report.triton_version, settings), **dataclasses.asdict(report)}


def splitting_json(report: SplittingReport, settings: Json) -> Json:
    """The report on splitting as plain data: date, machine, versions, settings, figures."""
    return {**header("splitting", report.triton_version, settings), **dataclasses.asdict(report)}


def print_client_cost(console: Console, report: ClientCostReport) -> None:
    """Write what the clients add to raw calls, and the targets."""
    _print_machine(console, report)
    columns = ["server, documents", "caller", "rounds", "requests", "raw ms", "client ms"]
    console.print(table("100 documents a call, medians", columns, [_call_row(cost) for cost in report.costs]))
    columns = ["client − raw, ms", "caller", "median", "95 % interval", "quartiles", "least to most"]
    rows = [row for cost in report.costs for row in _added_rows(cost)]
    console.print(table("client − raw, paired within rounds, ms", columns, rows))
    console.print(targets_table(report.targets))


def print_splitting(console: Console, report: SplittingReport) -> None:
    """Write what each strategy pads, how Triton batches it, and how long it takes."""
    _print_machine(console, report)
    ladder = ", ".join(map(str, report.length_ladder))
    console.print(
        f"At most {report.max_batch_size} pairs a request, padded to {ladder} tokens. "
        f"The client assumes {report.bytes_per_token:g} bytes a token (these texts have "
        f"{report.true_bytes_per_token:.2f}) and splits where that saves {report.request_cost_tokens} padded tokens."
    )
    for lists, figures in report.lists.items():
        pairs, tokens = sum(f.documents for f in figures), sum(f.tokens for f in figures)
        console.print(f"{lists}: {len(figures)} lists, {pairs:,} pairs, {tokens:,} tokens")
    columns = ["lists", "callers", "strategy", "requests", "padding", "rows/batch", "merged", "seconds", "/ naive"]
    rows = [row for figures in report.sets for row in _set_rows(figures)]
    console.print(table(f"splitting, {report.n_rounds} rounds", columns, rows))
    console.print(
        "padding: padded over real tokens. rows/batch: the encoder's inference count over its execution count. "
        "merged: requests a batch. / naive: seconds over those of naive, median (least to most) of the rounds."
    )
    rows = [_list_row(figures) for figures in report.lists["mixed"]]
    console.print(table("padding (requests) by list", ["documents", *STRATEGIES], rows))


def _print_machine(console: Console, report: ClientCostReport | SplittingReport) -> None:
    machine = describe_machine()
    console.print(
        f"{report.model} {report.precision}, Triton {report.triton_version}; {machine.cpu}, {machine.cores} cores"
    )
    quiet = report.other_load <= QUIET
    console.print(
        f"Other processes used {report.other_load:.0%} of the cores meanwhile"
        + ("" if quiet else "; [red]do not rely on the times: measure again on a quiet machine[/red]")
    )


def _call_row(cost: Cost) -> list[str]:
    name = f"{cost.server}, {cost.workload}"
    return [name, cost.client, str(cost.n_rounds), str(cost.requests), f"{cost.raw_ms:.2f}", f"{cost.client_ms:.2f}"]


def _added_rows(cost: Cost) -> list[list[str]]:
    name = f"{cost.server}, {cost.workload}"
    rows = [[name, cost.client, *_cells(cost.added)]]
    if cost.added_outside is not None:
        rows.append(["  without its own time", cost.client, *_cells(cost.added_outside)])
    return rows


def _cells(spread: Spread) -> list[str]:
    return [
        f"{spread.median:+.3f}",
        f"{spread.low:+.2f} to {spread.high:+.2f}",
        f"{spread.quartile_1:+.2f} to {spread.quartile_3:+.2f}",
        f"{spread.min:+.3g} to {spread.max:+.3g}",
    ]


def _set_rows(figures: SetFigures) -> list[list[str]]:
    return [
        [
            figures.lists,
            str(figures.callers),
            s.strategy,
            str(s.requests),
            f"{s.padding:.3f}",
            f"{s.rows_per_execution:.1f}",
            f"{s.requests_per_execution:.2f}",
            f"{s.seconds:.2f}",
            f"{s.ratio.median:.3f} ({s.ratio.min:.3f} to {s.ratio.max:.3f})",
        ]
        for s in figures.strategies
    ]


def _list_row(figures: ListFigures) -> list[str]:
    cells = (f"{figures.padded_tokens[s] / figures.tokens:.3f} ({figures.requests[s]})" for s in STRATEGIES)
    return [str(figures.documents), *cells]
