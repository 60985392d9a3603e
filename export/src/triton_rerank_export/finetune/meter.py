"""Progress of a training run, on a terminal or in a file."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
