"""Pictures, as PNGs: latency against throughput, throughput against the size of a call, peers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank_bench.tune.findings import Tuning
from triton_rerank_bench.tune.knobs import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from triton_rerank_bench.compare.race import Outcome

WIDTH_INCHES, HEIGHT_INCHES, DPI = 9.0, 6.0, 120
# Okabe and Ito's colours, which people with any colour vision tell apart; black and grey are taken for bounds and text.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_KINDS = {
    "default": (_COLOURS[0], -0.2),
    "best": (_COLOURS[1], 0.2),
}  # of a peer's setting: colour and place of its bar
_GREY, _LIGHT = "#767676", "#DDDDDD"
_ANSWER = "#000000"


def plot_latency(tuning: Tuning, path: Path, title: str, caption: str) -> None:
    """A curve a setting through its levels of callers: p99 above pairs a second; the caption goes below."""
    (axes,) = _new(title, caption)
    for setting, colour in zip(tuning.swept(), _COLOURS, strict=False):
        _latency_curve(axes, tuning, setting, colour)
    tried = dict.fromkeys(row.setting for row in tuning.rows if row.stage == "knobs" and row.figures)
    if tried:
        points = list(map(tuning.point, tried))
        place = [at.pairs_per_s for at in points], [at.latency.p99_ms for at in points]
        axes.scatter(*place, color=_GREY, marker="x", s=28, label="other settings tried, p99")
    answer, bound = tuning.answer(), tuning.wanted.p99_ms
    if answer is not None:
        label = f"the answer, p99 ({answer.concurrency})"
        style: dict[str, Any] = {"facecolors": "none", "edgecolors": _ANSWER, "linewidths": 1.6, "zorder": 4}
        axes.scatter([answer.pairs_per_s], [answer.p99_ms], s=190, label=label, **style)
    if bound is not None:
        axes.axhline(bound, color=_GREY, linestyle="--", linewidth=1)
        _note(axes, f"bound: p99 {bound:,g} ms", (1, bound), (-4, 3), xycoords=("axes fraction", "data"), ha="right")
    axes.set(xlabel="throughput, pairs a second", ylabel="latency of a call, ms", yscale="log")
    axes.margins(x=0.08, y=0.12)  # of the data, for the numbers beside the points
    axes.set_xlim(left=0)
    _plain_ticks(axes)
    _save(axes, path)


def plot_sizes(tuning: Tuning, path: Path, title: str, caption: str) -> None:
    """A curve a repository as it was exported: pairs a second above the pairs of a call."""
    (axes,) = _new(title, caption)
    shown: set[int] = set()
    for setting, colour in zip(tuning.swept(), _COLOURS, strict=False):
        found = {row.pairs: row.figures for row in tuning.rows if row.stage == "sizes" and row.setting == setting}
        sizes, speeds = [pairs or 0 for pairs in found], [at.pairs_per_s for at in found.values() if at]
        callers = ", ".join(map(str, sorted({at.concurrency for at in found.values() if at and at.concurrency})))
        axes.plot(
            sizes, speeds, color=colour, marker="o", label=f"{setting.repository} as exported, callers: {callers}"
        )
        shown.update(sizes)
    axes.set(xlabel="batch size: pairs in a call", ylabel="throughput, pairs a second")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(shown), [str(size) for size in sorted(shown)])
    axes.set_ylim(bottom=0)
    _save(axes, path)


def plot_peers(workloads: Sequence[Outcome], path: Path, title: str, caption: str) -> None:
    """A bar a peer and setting: seconds over ours served, with the spread of the rounds."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    n_bars = max(len(figures.of("default")) for figures in workloads)
    all_axes = _new(title, caption, len(workloads), (6.0 * len(workloads) + 3.0, 1.6 + 0.42 * n_bars))
    for axes, figures in zip(all_axes, workloads, strict=True):
        _bars(axes, figures)
    handles = [Patch(color=colour, label=f"at its {kind}") for kind, (colour, _) in _KINDS.items()]
    ours = Line2D([], [], color=_ANSWER, linewidth=1, label="ours, served: 1")
    figure: Any = all_axes[0].figure
    figure.legend(handles=[*handles, ours], loc="outside right upper", frameon=False, fontsize="small")
    _save(all_axes[0], path)


def _bars(axes: Axes, figures: Outcome) -> None:
    peers = [row.name for row in sorted(figures.of("default"), key=lambda row: row.timing.median_s)]
    for row in figures.rows:
        if row.kind == "ours":
            continue
        (colour, offset), place, ratio = _KINDS[row.kind], peers.index(row.name), row.ratio
        if ratio is None:
            _note(axes, "other order: no ratio", (0, place), (4, 0), va="center")
            continue
        spread = [[ratio.median - ratio.min], [ratio.max - ratio.median]]
        axes.barh(place + offset, ratio.median, 0.38, xerr=spread, color=colour, ecolor="#333333", capsize=2)
        _note(axes, f"{ratio.median:.2f}", (ratio.max, place + offset), (4, 0), va="center", color=_ANSWER)
    axes.axvline(1.0, color=_ANSWER, linewidth=1)
    axes.set_yticks(range(len(peers)), peers, fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    tokens = figures.tokens
    axes.set_title(f"{figures.workload}: {tokens.pairs} pairs, {tokens.total:,} tokens", fontsize="small")
    axes.set_axisbelow(True)


def _latency_curve(axes: Axes, tuning: Tuning, setting: Setting, colour: str) -> None:
    levels, label = tuning.of("exported", setting=setting), f"{setting.repository} as exported"
    speeds = [figures.pairs_per_s for figures in levels]
    p99, p50 = ([getattr(figures.latency, name) for figures in levels] for name in ("p99_ms", "p50_ms"))
    axes.plot(speeds, p99, color=colour, marker="o", label=f"{label}, p99 (callers)")
    axes.plot(speeds, p50, color=colour, linestyle=":", alpha=0.7, label=f"{label}, p50")
    for figures in levels:
        _note(axes, str(figures.concurrency), (figures.pairs_per_s, figures.latency.p99_ms), (6, 5), color=colour)


def _note(axes: Axes, words: str, place: tuple[float, float], points: tuple[int, int], **how: Any) -> None:
    """Words so many points beside a place."""
    style: dict[str, Any] = {"color": _GREY, "fontsize": "small", **how}
    axes.annotate(words, place, xytext=points, textcoords="offset points", **style)


def _new(
    title: str, caption: str, columns: int = 1, inches: tuple[float, float] = (WIDTH_INCHES, HEIGHT_INCHES)
) -> list[Axes]:
    """Axes side by side, of a figure with a title above and a caption below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import, which no other command needs
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium", fontweight="bold")
    figure.supxlabel(caption, fontsize="small", color=_GREY)
    found: list[Axes] = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in found:
        axes.grid(visible=True, which="major", color=_LIGHT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return found


def _plain_ticks(axes: Axes) -> None:
    """1,000 rather than 10³, and more of them than one a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    few = high / low > 30
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if few else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _save(axes: Axes, path: Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small", loc="best")
    figure: Any = axes.figure
    figure.savefig(path, format="png", dpi=DPI)
