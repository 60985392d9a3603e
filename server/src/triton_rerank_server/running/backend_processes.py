"""The processes of a running Triton, read from /proc: itself and the stubs that its Python backends run in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_INSTANCE_ARGUMENT = 8  # of a stub's command line


@dataclass(frozen=True)
class Process:
    """One process at one moment.

    Attributes:
        pid: its number.
        name: of the model instance, or of the program.
        state: letter of /proc: Z has ended and was not waited for, T stands still.
        cpu_s: seconds computed so far.
    """

    pid: int
    name: str
    state: str
    cpu_s: float


def processes(group: int) -> list[Process]:
    """Every process of a group that is there now."""
    found = (_read(entry) for entry in _PROC.iterdir() if entry.name.isdecimal())
    return [process for in_group, process in filter(None, found) if in_group == group]


def _read(folder: Path) -> tuple[int, Process] | None:
    """Its group and itself; None if it has gone meanwhile."""
    try:
        head, _, tail = (folder / "stat").read_text(errors="replace").rpartition(")")
        fields = tail.split()
        state, group, ticks = fields[0], int(fields[2]), int(fields[11]) + int(fields[12])
        arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    instance = arguments[_INSTANCE_ARGUMENT] if len(arguments) > _INSTANCE_ARGUMENT else ""
    name = instance if "stub" in arguments[0] and instance else head.partition("(")[2]
    return group, Process(int(folder.name), name, state, ticks / _TICKS_A_SECOND)
