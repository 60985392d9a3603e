"""The pictures: PNGs of the promised size, with what they must show on them."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from support.fake_bench import EXPORTED, FakeBench, figures, tuner

from triton_rerank_bench.load.generator import LoadFigures
from triton_rerank_bench.plots import DPI, HEIGHT_INCHES, WIDTH_INCHES, plot_latency, plot_sizes
from triton_rerank_bench.tune.findings import Row, Schedule, Tuning, Wanted
from triton_rerank_bench.tune.servers import Level

SIZE = (round(HEIGHT_INCHES * DPI), round(WIDTH_INCHES * DPI))


@pytest.fixture
def tuning() -> Tuning:
    search = tuner(
        FakeBench(lambda setting: 100.0 * setting.instances),
        *("instances", "max_batch_size"),
        p99_ms=5000,
        repositories=("int8", "fp32"),
    )
    search.run()
    return search.tuning


def axes_of(plot: object, *arguments: object) -> Axes:
    """Draw, and give what was drawn on."""
    kept: list[Axes] = []
    with mock.patch("triton_rerank_bench.plots._save", side_effect=lambda axes, _: kept.append(axes)):
        plot(*arguments)  # type: ignore[operator]
    return kept[0]


def test_both_are_pngs_of_the_promised_size(tuning: Tuning, tmp_path: Path) -> None:
    latency, sizes = tmp_path / "a.png", tmp_path / "b.png"
    plot_latency(tuning, latency, "title", "caption")
    plot_sizes(tuning, sizes, "title", "caption")
    for path in (latency, sizes):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        pixels = imread(path)
        assert pixels.shape[:2] == SIZE
        assert pixels[..., :3].std() > 0.01  # something is on it
    assert latency.read_bytes() != sizes.read_bytes()


def test_latency_shows_each_repository_the_bound_the_trials_and_the_answer(tuning: Tuning, tmp_path: Path) -> None:
    axes = axes_of(plot_latency, tuning, tmp_path / "a.png", "t", "c")
    _, labels = axes.get_legend_handles_labels()
    assert labels == [
        *("int8 as exported, p99 (callers)", "int8 as exported, p50"),
        *("fp32 as exported, p99 (callers)", "fp32 as exported, p50"),
        *("other settings tried, p99", "the answer, p99 (1)"),
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("throughput, pairs a second", "latency of a call, ms")
    assert axes.get_yscale() == "log"
    texts = [text.get_text() for text in axes.texts]
    assert "bound: p99 5,000 ms" in texts
    assert [int(text) for text in texts if text.isdecimal()][:2] == [1, 2]  # callers
    figure = axes.get_figure()
    assert figure is not None
    assert [text.get_text() for text in figure.texts] == ["t", "c"]


def test_sizes_show_each_repository_over_the_pairs_of_a_call(tuning: Tuning, tmp_path: Path) -> None:
    axes = axes_of(plot_sizes, tuning, tmp_path / "b.png", "t", "c")
    assert [line.get_label() for line in axes.lines] == [f"{name} as exported, callers: 1" for name in ("int8", "fp32")]
    assert [list(map(int, line.get_xdata())) for line in axes.lines] == [[1, 4, 16, 64, 256]] * 2  # type: ignore[arg-type]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16", "64", "256"]
    assert axes.get_xscale() == "log"


def with_levels(*levels: LoadFigures, p99_ms: float | None = None) -> Tuning:
    rows = [Row("exported", EXPORTED, each) for each in levels]
    return Tuning(Wanted(p99_ms, None, ()), Schedule.of(60), 100.0, rows)


def test_little_is_drawn_too(tmp_path: Path) -> None:
    """After an interruption there may be one level and no sizes."""
    one = with_levels(figures(100, 50, Level(1)))
    plot_latency(one, tmp_path / "a.png", "t", "c")
    plot_sizes(one, tmp_path / "b.png", "t", "c")
    one.rows.append(Row("sizes", EXPORTED, figures(90, 40, Level(1, pairs=4)), pairs=4))
    plot_sizes(one, tmp_path / "c.png", "t", "c")
    assert all(imread(tmp_path / f"{name}.png").shape[:2] == SIZE for name in "abc")


def test_a_level_without_answers_does_not_break_the_picture(tmp_path: Path) -> None:
    levels = [figures(100, 50, Level(1)), figures(0, float("inf"), Level(2), errors={"OverloadedError": 9})]
    tuning = with_levels(*levels, p99_ms=100.0)
    plot_latency(tuning, tmp_path / "a.png", "t", "c")
    assert imread(tmp_path / "a.png").shape[:2] == SIZE
