"""Steps of very different length, shown as the bar of the evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import ProgressColumn, Task
from rich.text import Text

from triton_rerank_retrieval.eval.progress import bar

OnStep = Callable[..., None]  # told what is being done and, where that is known anew, how many seconds are left


@contextmanager
def showing_time_left() -> Iterator[OnStep]:
    """Shows steps of very different length, which say themselves how long the rest will take."""
    start_s = time.monotonic()
    with bar(_TimeLeft()) as progress:
        task = progress.add_task("starting", total=None, ends_s=None)

        def on_step(doing: str, left_s: float | None = None) -> None:
            """Tell what is done now, and the seconds that the rest will take where they are known."""
            now_s = time.monotonic()
            left: dict[str, Any] = (
                {} if left_s is None else {"total": now_s - start_s + left_s, "ends_s": now_s + left_s}
            )
            progress.update(task, description=doing, completed=now_s - start_s, **left)

        yield on_step


class _TimeLeft(ProgressColumn):
    """What was expected at the last estimate, less what went by since."""

    def render(self, task: Task) -> Text:
        """Text of the column: minutes and seconds, or nothing before the first estimate."""
        ends_s = task.fields["ends_s"]
        if ends_s is None:
            return Text("")
        left_s = round(max(0.0, ends_s - time.monotonic()))
        return Text(f"about {left_s // 60}:{left_s % 60:02d} left")
