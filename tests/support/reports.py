"""How a test names the public reports that it stands for: its docstring begins ``owner/repository#number[, …]: …``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPORT = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+#[1-9][0-9]*", re.ASCII)
OWN = "own"  # a case that nobody reported: found while the others were tried
_HEAD = re.compile(rf"(?P<reports>{REPORT.pattern}(?:,\s{REPORT.pattern})*):\s\S")


@dataclass(frozen=True)
class Cited:
    """A test and what its docstring begins with."""

    place: str
    docstring: str
    reports: tuple[str, ...]

    @property
    def well_formed(self) -> bool:
        """It begins with reports, or says that it is our own."""
        return bool(self.reports) or self.docstring.startswith(f"{OWN}: ")


def read_reports(folder: Path) -> list[Cited]:
    """Every test function below a folder, in order of files and lines."""
    return [cited for path in sorted(folder.rglob("test_*.py")) for cited in _tests(path)]


def _tests(path: Path) -> Iterator[Cited]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            docstring = ast.get_docstring(node) or ""
            match = _HEAD.match(docstring)
            reports = tuple(re.split(r",\s", match["reports"])) if match else ()
            yield Cited(f"{path.name}::{node.name}", docstring, reports)
