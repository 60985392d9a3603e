"""A picture of a training run: loss, and nDCG@10 of the held-out queries, by step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from triton_rerank_export.finetune.config import FinetuneReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "finetune.png"
_SIZE_INCHES, _DPI = (9.0, 6.0), 120
_LOSS, _NDCG, _GRID = "#D55E00", "#0072B2", "#DDDDDD"  # Okabe and Ito's, which any colour vision tells apart


def draw(report: FinetuneReport, path: Path) -> bool:
    """Draw the curves as a PNG; False, and no file, where matplotlib is not installed.

    Args:
        report: with at least one step.
        path: of the picture.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    n_curves = 2 if report.measured else 1
    axes = figure.subplots(n_curves, 1, sharex=True, squeeze=False)[:, 0]
    steps, losses = zip(*report.losses, strict=True)
    axes[0].plot(steps, losses, color=_LOSS, marker="o" if len(steps) == 1 else None)
    window = f", mean of {steps[0]} steps" if steps[0] > 1 else ""
    _label(axes[0], f"loss{window} (lower is better)")
    if report.measured:
        at, found = zip(*report.measured, strict=True)
        values = [quality.ndcg_at_10 for quality in found]
        axes[1].plot(at, values, color=_NDCG, marker="o")
        for step, value in zip(at, values, strict=True):
            place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": "small"}
            axes[1].annotate(f"{value:.3f}", (step, value), color=_NDCG, **place)
        axes[1].margins(y=0.2)
        _label(axes[1], f"nDCG@10, {found[0].n_groups} held-out queries (higher is better)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel(f"updates ({report.pairs:,} pairs in {report.duration_s / 60:,.1f} min)")
    figure.savefig(path, format="png", dpi=_DPI)
    return True


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
