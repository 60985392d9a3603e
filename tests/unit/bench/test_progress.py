"""Progress where there is no terminal: lines, and not too many."""

from __future__ import annotations

import pytest
from rich.progress import TextColumn

from triton_rerank_bench.progress import showing_time_left
from triton_rerank_retrieval.eval.progress import LINE_EVERY_S, bar


def test_without_a_terminal_a_line_now_and_then_says_what_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with showing_time_left() as on_step:
        on_step("starting Triton")
        on_step("round 1 [of 3]")  # too early for another line
        now_s += LINE_EVERY_S
        on_step("round 2 [of 3]", left_s=90.0)
        on_step("round 3 [of 3]")  # too early, but the last
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2].strip() for line in lines] == [
        "starting Triton",
        "round 2 [of 3] about 1:30 left",
        "round 3 [of 3] about 1:30 left",
    ]


def test_steps_that_advance_are_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(TextColumn("{task.percentage:.0f} %")) as shown:
        task = shown.add_task("rounds", total=4)
        shown.advance(task)
    assert capsys.readouterr().err.split()[-3:] == ["rounds", "25", "%"]
