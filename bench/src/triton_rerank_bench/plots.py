"""Pictures, as PNGs: latency against throughput, throughput against the size of a call, peers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank_bench.tune.choice import operating_point
from triton_rerank_bench.tune.findings import Sweep, Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from triton_rerank_bench.compare.race import PeerFigures, WorkloadPeers

WIDTH_INCHES, HEIGHT_INCHES, DPI = 9.0, 6.0, 120
# Okabe and Ito's colours, which people with any colour vision tell apart; black and grey are taken for bounds and text.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_KINDS = {"default": _COLOURS[0], "best": _COLOURS[1]}
_GREY = "#767676"
_ANSWER = "#000000"


def plot_latency(tuning: Tuning, path: Path, *, title: str, caption: str) -> None:
    """A curve a setting through its levels of callers: p99 above pairs a second; the caption goes below."""
    figure, axes = _new(title, caption)
    for sweep, colour in zip(tuning.sweeps, _COLOURS, strict=False):
        _latency_curve(axes, sweep, colour)
    _trials(axes, tuning)
    _answer(axes, tuning)
    bound = tuning.wanted.p99_ms
    if bound is not None:
        axes.axhline(bound, color=_GREY, linestyle="--", linewidth=1)
        _note(axes, f"bound: p99 {bound:,g} ms", (1, bound), (-4, 3), xycoords=("axes fraction", "data"), ha="right")
    axes.set_xlabel("throughput, pairs a second")
    axes.set_ylabel("latency of a call, ms")
    axes.set_yscale("log")
    axes.margins(x=0.08, y=0.12)  # of the data, for the numbers beside the points
    axes.set_xlim(left=0)
    _plain_ticks(axes)
    _save(figure, axes, path)


def plot_sizes(sweeps: Sequence[Sweep], path: Path, *, title: str, caption: str) -> None:
    """A curve a repository as it was exported: pairs a second above the pairs of a call."""
    figure, axes = _new(title, caption)
    shown: set[int] = set()
    for sweep, colour in zip(sweeps, _COLOURS, strict=False):
        sizes, speeds = [each.pairs for each in sweep.sizes], [each.figures.pairs_per_s for each in sweep.sizes]
        callers = {each.figures.concurrency for each in sweep.sizes}
        label = f"{sweep.setting.repository} as exported, callers: {', '.join(map(str, sorted(filter(None, callers))))}"
        axes.plot(sizes, speeds, color=colour, marker="o", label=label)
        shown.update(sizes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(shown), [str(size) for size in sorted(shown)])
    axes.set_xlabel("batch size: pairs in a call")
    axes.set_ylabel("throughput, pairs a second")
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def plot_peers(workloads: Sequence[WorkloadPeers], path: Path, *, title: str, caption: str) -> None:
    """A bar a peer and setting: seconds over ours served, with the spread of the rounds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import, which no other command needs
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    n_bars = max(len(figures.peers) for figures in workloads)
    figure = Figure(figsize=(6.0 * len(workloads) + 3.0, 1.6 + 0.42 * n_bars), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    for axes, figures in zip(figure.subplots(1, len(workloads), squeeze=False)[0], workloads, strict=True):
        _panel(axes, figures)
    handles = [Patch(color=colour, label=f"at its {kind}") for kind, colour in _KINDS.items()]
    ours = Line2D([], [], color=_ANSWER, linewidth=1, label="ours, served: 1")
    figure.legend(handles=[*handles, ours], loc="outside right upper", frameon=False, fontsize="small")
    figure.supxlabel(caption, fontsize="small", color=_GREY)
    figure.savefig(path, format="png")


def _panel(axes: Axes, figures: WorkloadPeers) -> None:
    peers = sorted((peer for peer in figures.peers if peer.default), key=_slowness)
    for offset, (kind, colour) in zip((-0.2, 0.2), _KINDS.items(), strict=True):
        bars = [(place, getattr(peer, kind).ratio) for place, peer in enumerate(peers) if getattr(peer, kind).ratio]
        for place, ratio in bars:
            spread = [[ratio.median - ratio.min], [ratio.max - ratio.median]]
            axes.barh(place + offset, ratio.median, 0.38, xerr=spread, color=colour, ecolor="#333333", capsize=2)
            _note(axes, f"{ratio.median:.2f}", (ratio.max, place + offset), (4, 0), va="center", color=_ANSWER)
    for place in (place for place, peer in enumerate(peers) if peer.default and not peer.default.ratio):
        _note(axes, "other order: no ratio", (0, place), (4, 0), va="center")
    axes.axvline(1.0, color=_ANSWER, linewidth=1)
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


def _latency_curve(axes: Axes, sweep: Sweep, colour: str) -> None:
    speeds = [figures.pairs_per_s for figures in sweep.levels]
    p99, p50 = ([getattr(f.latency, name) for f in sweep.levels] for name in ("p99_ms", "p50_ms"))
    label = f"{sweep.setting.repository} as exported"
    axes.plot(speeds, p99, color=colour, marker="o", label=f"{label}, p99 (callers)")
    axes.plot(speeds, p50, color=colour, linestyle=":", alpha=0.7, label=f"{label}, p50")
    for figures in sweep.levels:
        _note(axes, str(figures.concurrency), (figures.pairs_per_s, figures.latency.p99_ms), (6, 5), color=colour)


def _trials(axes: Axes, tuning: Tuning) -> None:
    points = [operating_point(trial.levels, tuning.wanted.p99_ms) for trial in tuning.trials if trial.levels]
    if points:
        speeds, latencies = zip(*((point.pairs_per_s, point.latency.p99_ms) for point in points), strict=True)
        axes.scatter(speeds, latencies, color=_GREY, marker="x", s=28, label="other settings tried, p99", zorder=2)


def _answer(axes: Axes, tuning: Tuning) -> None:
    answer = tuning.answer()
    if answer is not None:
        label = f"the answer, p99 ({answer.concurrency})"
        place = ([answer.pairs_per_s], [answer.p99_ms])
        axes.scatter(*place, s=190, facecolors="none", edgecolors=_ANSWER, linewidths=1.6, label=label, zorder=4)


def _note(axes: Axes, words: str, place: tuple[float, float], points: tuple[int, int], **how: Any) -> None:
    """Words so many points beside a place."""
    style: dict[str, Any] = {"color": _GREY, "fontsize": "small", **how}
    axes.annotate(words, place, xytext=points, textcoords="offset points", **style)


def _new(title: str, caption: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import, which no other command needs
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize="medium", fontweight="bold")
    figure.text(0.015, 0.015, caption, fontsize="small", color=_GREY, ha="left", va="bottom")
    axes.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain_ticks(axes: Axes) -> None:
    """1,000 rather than 10³, and more of them than one a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    few = high / low > 30
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if few else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small", loc="best")
    figure.subplots_adjust(left=0.085, right=0.975, top=0.93, bottom=0.17)
    figure.savefig(path, format="png", dpi=DPI)
