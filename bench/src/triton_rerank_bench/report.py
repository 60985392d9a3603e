"""One form of report for all commands: lines and tables for people, one JSON object for programs.

Its files replace older ones only when all of them are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.machine import describe_machine, installed_versions, today
from triton_rerank_server import atomic

QUIET = 0.05  # share of the cores that others may use before times mean little
NOT_KNOWN = "–"

Json = dict[str, object]
Files = Mapping[str, "str | Callable[[Path], None]"]  # name -> its text, or what draws to a path
_VERDICTS: dict[object, str] = {True: "pass", False: "MISS", None: "not measured here"}
_STYLES = {"pass": "green", "MISS": "red"}


@dataclass(frozen=True)
class Table:
    """Figures in rows. People see the columns; a program gets the rows, which may hold more.

    Attributes:
        title: above the table.
        columns: heading -> key of a row, with a format behind a colon: ``{"p99 ms": "latency.p99_ms:,.1f"}``.
        rows: mappings or dataclasses; a dot in a key goes into a nested one.
    """

    title: str
    columns: Mapping[str, str]
    rows: Sequence[Any]

    def cells(self) -> list[list[str]]:
        """The text of each cell, row by row."""
        return [[text(_value(row, key), form) for key, form in self._keys()] for row in self.rows]

    def grid(self) -> Grid:
        """For a terminal: the first column to the left, the others to the right."""
        grid = Grid(title=escape(self.title), title_justify="left")
        for number, heading in enumerate(self.columns):
            grid.add_column(heading, justify="left" if number == 0 else "right")
        for cells in self.cells():
            grid.add_row(*(f"[{_STYLES[cell]}]{cell}[/]" if cell in _STYLES else escape(cell) for cell in cells))
        return grid

    def markdown(self) -> str:
        """A heading and a table."""
        headings = [heading or " " for heading in self.columns]
        lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *self.cells()]
        rows = (f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
        return f"### {self.title}\n\n{''.join(rows)}"

    def _keys(self) -> list[tuple[str, str]]:
        parts = (column.partition(":") for column in self.columns.values())
        return [(key, form) for key, _, form in parts]


@dataclass(frozen=True)
class Report:
    """What one run of a command came to.

    Attributes:
        kind: of report.
        triton_version: as the server says.
        settings: of the command.
        figures: for programs, besides date, machine, versions, settings and what is below.
        parts: for people, in order: lines and tables.
        summary: lines for people: the last on a terminal, the first of a file.
        targets: rows of `target`; None for a command without targets.
        other_load: share of the cores that other processes used meanwhile; None where it is told by the parts.
        interrupted: the user ended it, and this is what was measured before.
    """

    kind: str
    triton_version: str | None
    settings: Json
    figures: Json
    parts: Sequence[str | Table]
    summary: Sequence[str] = ()
    targets: Sequence[Json] | None = None
    other_load: float | None = None
    interrupted: bool = False

    def json(self) -> Json:
        """Plain data; what is infinite or not a number is null, since JSON knows neither."""
        plain: Json = _plain(
            {
                "kind": self.kind,
                "date": today(),
                "machine": describe_machine(),
                "versions": self.versions(),
                "settings": self.settings,
                "triton_version": self.triton_version,
                **self.figures,
                "interrupted": self.interrupted,
                **({} if self.other_load is None else {"other_load": self.other_load}),
                **({} if self.targets is None else {"targets": self.targets}),
            }
        )
        return plain

    def versions(self) -> dict[str, str]:
        """Of what a figure depends on."""
        return installed_versions() | ({"tritonserver": self.triton_version} if self.triton_version else {})

    def print(self, console: Console) -> None:
        """Everything for people, on the terminal."""
        for part in self._parts():
            if isinstance(part, Table):
                console.print(part.grid())
            else:
                loud = part.startswith(LOUD)
                console.print(part.removeprefix(LOUD), markup=False, highlight=False, style="red" if loud else None)
        for line in self.summary:
            console.print(line, markup=False, highlight=False, style="bold")

    def markdown(self, title: str, *more: str) -> str:
        """Everything for people, as a file: lines as a list, tables, and more paragraphs at the end."""
        parts = (*self.summary, *self._parts())
        told = [f"- {each.removeprefix(LOUD)}" if isinstance(each, str) else f"\n{each.markdown()}" for each in parts]
        return "\n".join([f"# {title}\n", *told, *more]) + "\n"

    def finish(
        self, options: argparse.Namespace, console: Console, files: Files | None = None, *more: str
    ) -> tuple[Json, int]:
        """Publish the files in ``--output``, where there are some, and print everything, with more lines at the end.

        Returns:
            It as plain data, and the command's exit code: 130 after an interruption, 1 if ``--check`` is given and a
            target was missed, else 0.
        """
        written = publish(options.output_folder, files) if files else []
        self.print(console)
        for line in (*more, *(["written: " + ", ".join(map(str, written))] if written else [])):
            console.print(line, markup=False, highlight=False)
        missed = any(row["passed"] is False for row in self.targets or ())
        return self.json(), INTERRUPTED if self.interrupted else int(getattr(options, "check", False) and missed)

    def _parts(self) -> list[str | Table]:
        head = [part for part in self.parts[:1] if isinstance(part, str)]
        return [
            *head,
            *([f"{LOUD}Interrupted: this is what was measured until then."] if self.interrupted else []),
            *([] if self.other_load is None else [others(self.other_load)]),
            *self.parts[len(head) :],
            *([] if self.targets is None else [_targets(self.targets)]),
        ]


def nothing_measured(kind: str, console: Console) -> tuple[Json, int]:
    """What a command gives that was interrupted before it had a figure."""
    console.print("interrupted before anything was measured: nothing is written")
    return {"kind": kind, "interrupted": True}, INTERRUPTED


LOUD = "\a"  # begins a line that must not be passed over


def others(share: float) -> str:
    """The line on what other processes used of the cores meanwhile."""
    told = f"Other processes used {share:.0%} of the cores meanwhile"
    return told if share <= QUIET else f"{LOUD}{told}; do not rely on the times: measure again on a quiet machine"


def target(
    what: str, value: float, *, at_most: float | None = None, at_least: float | None = None, judged: bool = True
) -> Json:
    """A row of `targets`: whether a figure holds its bound; None where this run cannot tell."""
    if at_most is not None:
        told, passed = f"at most {at_most:g}", value <= at_most
    else:
        assert at_least is not None
        told, passed = f"at least {at_least:g}", value >= at_least
    return {"text": f"{what}: {told}", "value": value, "passed": passed if judged else None}


def _targets(rows: Sequence[Json]) -> Table:
    told = [{**row, "verdict": _VERDICTS[row["passed"]]} for row in rows]
    return Table("targets", {"target": "text", "measured": "value:.3f", "verdict": "verdict"}, told)


def text(value: Any, form: str = "") -> str:
    """A value for people; a `race.Ratio` with its least and most."""
    if hasattr(value, "median"):
        return f"{value.median:{form}} ({value.min:{form}} to {value.max:{form}})"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_KNOWN
    return format(value, form if not isinstance(value, str) else "")


def compact(document: Json) -> str:
    """One line of JSON."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def indented(document: Json) -> str:
    """JSON for a file that people read too."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _value(row: Any, key: str) -> Any:
    for name in key.split("."):
        row = row.get(name) if isinstance(row, Mapping) else getattr(row, name)
        if row is None:
            return None
    return row


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_folder(folder: Path, names: Iterable[str]) -> None:
    """Whether files of these names can be written there, before anything is measured for them.

    Raises:
        BenchError: it is a file, or cannot be written to, or one of the names is a folder in it.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with atomic.scratch(there, "report"):
            pass
    except OSError as exc:
        raise BenchError(f"--output {folder}: must be a folder to write to ({exc.strerror})") from exc
    for name in names:
        if (folder / name).is_dir():
            raise BenchError(f"--output {folder}: {name} in it is a folder, and cannot be replaced")


def publish(folder: Path, files: Files) -> list[Path]:
    """Write files, texts or what draws to a path, and put them in the places of older ones when all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.scratch(folder, "report") as beside:
        for name, content in files.items():
            if isinstance(content, str):
                (beside / name).write_text(content, encoding="utf-8")
            else:
                content(beside / name)
            (beside / name).stat()  # raises before anything is moved
        return [(beside / name).replace(folder / name) for name in files]
