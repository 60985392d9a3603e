"""Progress on stderr, since stdout carries the report. Drawing it must not cost what is timed.

Where there is no terminal, a line now and then says what is being done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

LINE_EVERY_S = 15.0


class OnStep(Protocol):
    """Told of each step."""

    def __call__(self, doing: str, left_s: float | None = None) -> None:
        """What is being done and, where that is known anew, how many seconds are left."""


def bar(*columns: ProgressColumn) -> Progress:
    """A bar with what is being done, the time that it took, and more columns."""
    console = Console(stderr=True)
    if not console.is_terminal:
        plain = TextColumn("{task.description}", markup=False)
        return _Lines(TimeElapsedColumn(), plain, *columns, console=console, disable=True)
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeElapsedColumn())
    return Progress(*shown, console=console, refresh_per_second=2)


@contextmanager
def showing_time_left() -> Iterator[OnStep]:
    """Shows steps of very different length, which say themselves how long the rest will take."""
    start_s = time.monotonic()
    with bar(_TimeLeft()) as progress:
        task = progress.add_task("starting", total=None, ends_s=None)

        def on_step(doing: str, left_s: float | None = None) -> None:
            now_s = time.monotonic()
            left: dict[str, Any] = (
                {} if left_s is None else {"total": now_s - start_s + left_s, "ends_s": now_s + left_s}
            )
            progress.update(task, description=doing, completed=now_s - start_s, **left)

        yield on_step


class _Lines(Progress):
    """Draws nothing; prints a task's columns when it moves, at most every `LINE_EVERY_S`."""

    _printed_s = -LINE_EVERY_S

    def update(self, task_id: TaskID, **moved: Any) -> None:
        """As rich's."""
        super().update(task_id, **moved)
        self._print(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich's."""
        super().advance(task_id, advance)
        self._print(task_id)

    def _print(self, task_id: TaskID) -> None:
        now_s = time.monotonic()
        if now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s = now_s
            shown = (column(self._tasks[task_id]) for column in self.columns if isinstance(column, ProgressColumn))
            self.console.print(" ".join(str(text) for text in shown if str(text)), markup=False, highlight=False)


class _TimeLeft(ProgressColumn):
    """What was expected at the last estimate, less what went by since."""

    def render(self, task: Task) -> Text:
        ends_s = task.fields["ends_s"]
        if ends_s is None:
            return Text("")
        left_s = round(max(0.0, ends_s - time.monotonic()))
        return Text(f"about {left_s // 60}:{left_s % 60:02d} left")
