"""File operations that fail: counted, and at a chosen one the disk is full, Ctrl-C comes, or the process dies."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triton_rerank_server import atomic

Fault = Callable[[], object]
_CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "link")
_OTHERS = ("fsync", "open")  # which change nothing, but may fail or be interrupted


class Operations:
    """Counts what changes files, and has the chosen one fail.

    Args:
        at: number of the operation, from 1; 0 lets all go well.
        fault: called in its place; of a file's content half is written before.
        for_ever: those that need room fail from then on, as on a full disk.

    Attributes:
        names: of the operations that were begun.
    """

    def __init__(self, at: int = 0, fault: Fault = lambda: None, *, for_ever: bool = False) -> None:
        self.names: list[str] = []
        self._at, self._fault, self._for_ever = at, fault, for_ever

    def begin(self, name: str, *, needs_room: bool = False) -> bool:
        """True if this one is to fail."""
        self.names.append(name)
        number = len(self.names)
        return number == self._at or (self._for_ever and needs_room and 0 < self._at < number)

    def fail(self) -> None:
        self._fault()

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.begin(name, needs_room=name in ("mkdir", "link", "fsync")):
                self.fail()
            return call(*args, **kwargs)

        return wrapped

    def open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wxa+") and self.begin("write", needs_room=True):
                with call(file, "wb") as half:
                    half.write(b"half of ")
                self.fail()
            return call(file, mode, *args, **kwargs)

        return opened


@contextlib.contextmanager
def failing(operations: Operations, *, changes_only: bool = False) -> Iterator[Operations]:
    """What Python does to files inside goes through these; a kill needs those only that change something."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _CHANGES if changes_only else (*_CHANGES, *_OTHERS):
            patch.setattr(os, name, operations.wrap(name, getattr(os, name)))
        if not changes_only:
            patch.setattr(fcntl, "flock", operations.wrap("flock", fcntl.flock))
        patch.setattr(atomic, "_exchange", operations.wrap("exchange", atomic._exchange))
        patch.setattr(shutil, "_use_fd_functions", False)  # rmtree goes by names, which are wrapped
        patch.setattr(builtins, "open", operations.open(builtins.open))
        patch.setattr(io, "open", operations.open(io.open))
        if accessor := getattr(pathlib, "_normal_accessor", None):  # Python 3.10: pathlib keeps functions of its own
            for name in _CHANGES:
                patch.setattr(accessor, name, getattr(os, name))
            patch.setattr(accessor, "open", io.open)
        yield operations


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ctrl_c() -> None:
    raise KeyboardInterrupt


def killed(work: Callable[[], object]) -> bool:
    """Run it in a process of its own; True if that died on the way, with code 9."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9


def die() -> None:
    os._exit(9)


def leftovers(folder: Path) -> list[str]:
    """Hidden names in a folder, at any depth."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))
