"""Plots as SVG text, the same bytes for the same figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from triton_rerank_retrieval.eval.sweeps import MAIN, Calibration, KPoint

mpl.rcParams["svg.hashsalt"] = "triton-rerank"  # else ids differ from run to run
BLUE, ORANGE, GREY = "#2a6fbb", "#d9822b", "#888888"


def pareto(systems: Mapping[str, tuple[float, float]]) -> str:
    """Quality against seconds of all systems; those that no other beats in both are joined. "" for none."""
    if not systems:
        return ""
    figure, axes = _axes("seconds a query, median", MAIN, "Quality against latency")
    best = front(systems)
    for name, (seconds, quality) in systems.items():
        axes.plot(seconds, quality, "o", color=BLUE if name in best else GREY)
        axes.annotate(name, (seconds, quality), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.plot([systems[name][0] for name in best], [systems[name][1] for name in best], color=BLUE, linewidth=1)
    axes.set_xscale("log")
    return _svg(figure)


def front(systems: Mapping[str, tuple[float, float]]) -> list[str]:
    """Systems that no other one beats in seconds and quality, fastest first."""
    kept: list[str] = []
    for name in sorted(systems, key=lambda name: (systems[name][0], -systems[name][1])):
        if not kept or systems[name][1] > systems[kept[-1]][1]:
            kept.append(name)
    return kept


def k_sweep(name: str, points: Sequence[KPoint], knee: KPoint) -> str:
    """Quality and, where it was timed, latency against K."""
    figure, axes = _axes("K, candidates of the first stage", MAIN, f"How many candidates {name} needs")
    axes.plot([point.k for point in points], [point.quality for point in points], "o-", color=BLUE)
    axes.axvline(knee.k, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(f"K = {knee.k}", (knee.k, knee.quality), xytext=(5, -14), textcoords="offset points")
    timed = [point for point in points if point.seconds is not None]
    if timed:
        right = axes.twinx()
        right.plot([point.k for point in timed], [point.seconds for point in timed], "s--", color=ORANGE)
        right.set_ylabel("seconds a query, median", color=ORANGE)
        right.set_ylim(bottom=0)
    return _svg(figure)


def thresholds(calibration: Calibration) -> str:
    """Precision and recall against ``min_score``, and the reliability of the fit beside it."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    scores = [point.min_score for point in calibration.thresholds]
    left.plot(scores, [point.precision for point in calibration.thresholds], color=BLUE, label="precision")
    left.plot(scores, [point.recall for point in calibration.thresholds], color=ORANGE, label="recall")
    left.set_xlabel("min_score")
    left.legend()
    most = max(max(pair) for pair in calibration.reliability)
    right.plot([0, most], [0, most], color=GREY, linewidth=1)
    right.plot(*zip(*calibration.reliability, strict=True), "o-", color=BLUE)
    right.set_xlabel("fitted probability")
    right.set_ylabel("share that is relevant")
    return _svg(figure)


def _axes(x: str, y: str, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]
