"""Progress on stderr, since stdout carries the report. Drawing it must not cost what is timed.

Where there is no terminal, a line now and then says what is being done.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 15.0


def bar(*columns: ProgressColumn) -> Progress:
    """A bar with what is being done, the time that it took, and more columns."""
    console = Console(stderr=True)
    if not console.is_terminal:
        plain = TextColumn("{task.description}", markup=False)
        return _Lines(TimeElapsedColumn(), plain, *columns, console=console, disable=True)
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeElapsedColumn())
    return Progress(*shown, console=console, refresh_per_second=2)


class _Lines(Progress):
    """Draws nothing; prints a task's columns when it moves, at most every `LINE_EVERY_S`, and at the end."""

    _printed_s = -LINE_EVERY_S
    _untold: TaskID | None = None  # the task that moved since

    def update(self, task_id: TaskID, **moved: Any) -> None:
        """As rich's."""
        super().update(task_id, **moved)
        self._print(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich's."""
        super().advance(task_id, advance)
        self._print(task_id)

    def stop(self) -> None:
        """As rich's; the last that was done is told in any case."""
        super().stop()
        if self._untold is not None:
            self._printed_s = -LINE_EVERY_S
            self._print(self._untold)

    def _print(self, task_id: TaskID) -> None:
        now_s = time.monotonic()
        self._untold = task_id
        if now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s, self._untold = now_s, None
            shown = (column(self._tasks[task_id]) for column in self.columns if isinstance(column, ProgressColumn))
            with contextlib.suppress(OSError):  # nobody reads it any more, which must not end the work
                self.console.print(" ".join(str(text) for text in shown if str(text)), markup=False, highlight=False)
