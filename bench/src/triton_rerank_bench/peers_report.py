"""The report on the peers: tables for the terminal and as Markdown, one JSON line, a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from triton_rerank_bench.machine import describe_machine, today
from triton_rerank_bench.peers.figures import AtSetting, PeerFigures, PeersReport, WorkloadPeers
from triton_rerank_bench.report import QUIET, Json, compact, header, table, targets_table
from triton_rerank_bench.report_folder import ReportFolder
from triton_rerank_bench.rounds import WARM_UP_ROUNDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT, LINE, PLOT = "peers.md", "peers.json", "peers.png"
FILES = (REPORT, LINE, PLOT)
_COLUMNS = ["peer", "default", "s", "/ served", "best setting", "s", "/ served", "Kendall tau"]
_NOTES = (
    "s: seconds for the whole list, tokenisation included, median of the rounds. / served: those seconds over ours "
    "served, paired within rounds: median (least to most). Kendall tau: order of the default setting against torch "
    "fp32; below the bound of its precision a peer gets no ratio. A peer's texts and scores go through a pipe to a "
    "process of its own environment, which costs about a millisecond."
)
_COLOURS = {"default": "#0072B2", "best": "#D55E00"}  # Okabe and Ito's
_DPI = 120


def peers_json(report: PeersReport, settings: Json, environments: dict[str, dict[str, str]]) -> Json:
    """The report as plain data: date, machine, versions, settings, the peers' own versions, figures, targets."""
    document = header("peers", report.triton_version, settings)
    return {**document, "environments": environments, **dataclasses.asdict(report)}


def print_peers(console: Console, report: PeersReport) -> None:
    """Write what the Markdown has, for a terminal."""
    for line in _preface(report):
        console.print(line)
    for figures in report.workloads:
        console.print(table(_title(figures), _COLUMNS, _rows(figures)))
        console.print("\n".join(_remarks(figures)), highlight=False)
    console.print(targets_table(report.targets))
    console.print(_NOTES, highlight=False)


def write_peers(
    folder: ReportFolder, report: PeersReport, document: Json, environments: dict[str, dict[str, str]]
) -> list[Path]:
    """Write the Markdown, the JSON line and the plot."""
    folder.path(LINE).write_text(compact(document) + "\n", encoding="utf-8")
    plot(report, folder.path(PLOT))
    folder.path(REPORT).write_text("\n".join(_markdown(report, environments)) + "\n", encoding="utf-8")
    return folder.publish()


def plot(report: PeersReport, path: Path) -> None:
    """A bar a peer and setting: seconds over ours served, with the spread of the rounds; write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import, which no other command needs
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    n_bars = max(len(figures.peers) for figures in report.workloads)
    figure = Figure(figsize=(6.0 * len(report.workloads) + 3.0, 1.6 + 0.42 * n_bars), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{report.model} {report.precision}: seconds of each peer over ours, served", fontsize="medium")
    panels = figure.subplots(1, len(report.workloads), squeeze=False)[0]
    for axes, figures in zip(panels, report.workloads, strict=True):
        _panel(axes, figures)
    handles = [Patch(color=colour, label=f"at its {kind}") for kind, colour in _COLOURS.items()]
    ours = Line2D([], [], color="#000000", linewidth=1, label="ours, served: 1")
    figure.legend(handles=[*handles, ours], loc="outside right upper", frameon=False, fontsize="small")
    machine = describe_machine()
    caption = f"{machine.cpu}, {report.n_threads} threads each; {today()}; bars: median, lines: least to most of rounds"
    figure.supxlabel(caption, fontsize="small", color="#767676")
    figure.savefig(path, format="png")


def _panel(axes: Axes, figures: WorkloadPeers) -> None:
    peers = sorted((peer for peer in figures.peers if peer.default), key=_slowness)
    for offset, (kind, colour) in zip((-0.2, 0.2), _COLOURS.items(), strict=True):
        bars = [(place, getattr(peer, kind).ratio) for place, peer in enumerate(peers) if getattr(peer, kind).ratio]
        for place, ratio in bars:
            spread = [[ratio.median - ratio.min], [ratio.max - ratio.median]]
            axes.barh(place + offset, ratio.median, 0.38, xerr=spread, color=colour, ecolor="#333333", capsize=2)
            axes.annotate(
                f"{ratio.median:.2f}",
                (ratio.max, place + offset),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize="x-small",
            )
    for place in (place for place, peer in enumerate(peers) if peer.default and not peer.default.ratio):
        axes.annotate(" other order: no ratio", (0, place), va="center", fontsize="x-small", color="#767676")
    axes.axvline(1.0, color="#000000", linewidth=1)
    axes.set_yticks(range(len(peers)), [peer.peer for peer in peers], fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_title(
        f"{figures.workload}: {figures.tokens.pairs} pairs, {figures.tokens.total:,} tokens", fontsize="small"
    )
    axes.grid(visible=True, axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _slowness(peer: PeerFigures) -> float:
    assert peer.default is not None
    return peer.default.timing.median_s


def _preface(report: PeersReport) -> list[str]:
    machine = describe_machine()
    return [
        f"{report.model} {report.precision} ({report.backend}), max_length {report.max_length}, "
        f"Triton {report.triton_version}; {machine.cpu} ({', '.join(machine.cpu_flags)}), "
        f"{report.n_threads} threads each",
        f"Other processes used {report.other_load:.0%} of the cores meanwhile"
        + ("" if report.other_load <= QUIET else "; do not rely on the times: measure again on a quiet machine"),
        *(["Interrupted: what follows was measured before."] if report.interrupted else []),
    ]


def _title(figures: WorkloadPeers) -> str:
    tokens = figures.tokens
    return (
        f"{figures.workload}: {tokens.pairs} pairs, {tokens.total:,} tokens, longest {tokens.longest}; "
        f"{figures.n_rounds} rounds after {WARM_UP_ROUNDS} uncounted"
    )


def _rows(figures: WorkloadPeers) -> list[list[str]]:
    ours = [
        [f"ours, {timing.contestant}", "", f"{timing.median_s:.3f}", ratio, "", "", "", tau]
        for timing, ratio, tau in zip(
            figures.ours,
            ("1", f"{1 / figures.served_over_in_process:.2f}"),
            (f"{figures.our_kendall_tau:.3f}", ""),
            strict=True,
        )
    ]
    return [*ours, *(_row(peer) for peer in sorted(figures.peers, key=_ranking))]


def _ranking(peer: PeerFigures) -> tuple[int, float]:
    """Fastest at its best first; then those without a ratio, then those not measured."""
    if peer.best is None:
        return 2, 0.0
    return (0, peer.best.timing.median_s) if peer.best.ratio else (1, peer.best.timing.median_s)


def _row(peer: PeerFigures) -> list[str]:
    if peer.default is None or peer.best is None:
        return [peer.peer, "not measured", *[""] * 6]
    notes = f" ({', '.join(f'{key} {value}' for key, value in peer.notes.items())})" if peer.notes else ""
    return [
        peer.peer + notes,
        *_cells(peer.default),
        *_cells(peer.best),
        f"{peer.default.kendall_tau:.3f}",
    ]


def _cells(at: AtSetting) -> list[str]:
    ratio = f"{at.ratio.median:.2f} ({at.ratio.min:.2f} to {at.ratio.max:.2f})" if at.ratio else "other order"
    return [at.setting, f"{at.timing.median_s:.3f}", ratio]


def _remarks(figures: WorkloadPeers) -> list[str]:
    lines = [f"{peer.peer}: not measured: {peer.not_measured}" for peer in figures.peers if peer.not_measured]
    for peer in figures.peers:
        if peer.default and not peer.default.ratio:
            lines.append(
                f"{peer.peer}: gets no ratio: Kendall's tau to torch fp32 is {peer.default.kendall_tau:.3f}, and "
                f"{peer.precision} must reach {peer.least_tau:g}"
            )
    waiting = f"All waiting workers together used {figures.idle_share:.1%} of one core."
    return [*lines, waiting, f"Served over in process: {figures.served_over_in_process:.3f}."]


def _markdown(report: PeersReport, environments: dict[str, dict[str, str]]) -> list[str]:
    lines = ["# Peers, side by side", "", *(f"{line}  " for line in _preface(report)), "", f"![ratios]({PLOT})", ""]
    for figures in report.workloads:
        lines += [f"## {_title(figures)}", "", *_grid(_COLUMNS, _rows(figures)), ""]
        lines += [*(f"- {line}" for line in _remarks(figures)), ""]
    verdicts = {True: "pass", False: "**miss**", None: "not measured here"}
    targets = [[target.text, f"{target.value:.3f}", verdicts[target.passed]] for target in report.targets]
    lines += ["## Targets", "", *_grid(["target", "measured", "verdict"], targets), "", _NOTES, ""]
    lines += ["## What was tried", "", "Seconds in the search for the best setting, before the rounds.", ""]
    for figures in report.workloads:
        rows = [[peer.peer, _tried(peer)] for peer in figures.peers if peer.tried]
        lines += [*_grid([figures.workload, "setting: seconds"], rows), ""]
    lines += ["## Versions", ""]
    for name, versions in environments.items():
        lines.append(f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}")
    return lines


def _tried(peer: PeerFigures) -> str:
    return "; ".join(f"{setting}: {seconds:.3f}" for setting, seconds in peer.tried.items())


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
