"""What a training run shows: progress on a terminal or in a file; a picture of loss and nDCG@10 by step."""

from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


LOG_EVERY_S = 30.0  # where the output is a file, a line now and then replaces the bar


def bar(console: Console | None) -> Progress:
    """Return a progress bar that vanishes at the end; none where the output is no terminal."""
    return Progress(console=console, disable=console is None or not console.is_terminal, transient=True)


class Meter:
    """Shows the running loss, pairs a second and time left: a bar on a terminal, a line now and then in a file."""

    def __init__(self, console: Console | None, total: int, minutes: float | None) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._console = console
        self._progress = Progress(*columns, console=console, disable=console is None or not console.is_terminal)
        self._task = self._progress.add_task("training", total=total)
        self._total, self._minutes = total, minutes
        self._loss = math.nan
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, pairs: int, loss: float) -> None:
        """Show ``step`` updates and ``pairs`` pairs so far, and the running mean of the loss."""
        self._loss = loss if math.isnan(self._loss) else 0.98 * self._loss + 0.02 * loss
        now = time.monotonic()
        text = f"loss {self._loss:.3f}, {pairs / max(now - self._started, 1e-9):.0f} pairs/s"
        # With a budget of minutes the bar shows the steps that fit into it at this speed.
        fits = math.inf if self._minutes is None else math.ceil(step * 60 * self._minutes / (now - self._started))
        self._progress.update(self._task, completed=step, total=min(self._total, fits), description=text)
        if self._console and not self._console.is_terminal and now - self._logged >= LOG_EVERY_S:
            self._console.print(f"step {step} of about {min(self._total, fits)}: {text}")
            self._logged = now
