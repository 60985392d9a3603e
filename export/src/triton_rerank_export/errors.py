"""The one error of export: its message is what the user reads."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk's fault, not the checkpoint's
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's words for the same, without a number
_LONGEST = 300  # characters of a library's words


class ExportError(RuntimeError):
    """Export, check or training cannot go on.

    The message says what was wrong, the value, the bound and what to do; and, where it was being written, what the
    model repository serves now.
    """

    placed = False  # the message says already what it is about


@contextlib.contextmanager
def explained(what: str, *, hidden: str = "", kind: type[ExportError] = ExportError) -> Iterator[None]:
    """Turn whatever a library raises in the block into one line.

    Libraries that read a stranger's files raise anything: a KeyError, a ZeroDivisionError, a panic of Rust.

    Args:
        what: begins the message: whose file it is, and what cannot be done with it.
        hidden: a folder that the user does not know; its path is left out of the message.
        kind: what is raised.

    Raises:
        ExportError: the block failed.
    """
    try:
        yield
    except (ExportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # a panic of Rust is no Exception
        if isinstance(exc, OSError) and (exc.errno in NO_ROOM or _SHORT_WRITE.search(str(exc))):
            raise
        raise kind(f"{what} ({cause(exc, hidden=hidden)})") from exc


@contextlib.contextmanager
def about(what: object) -> Iterator[None]:
    """Let the errors of the block begin with what they are about; of two such blocks the inner one says it.

    Args:
        what: such as the checkpoint whose files are read.

    Raises:
        ExportError: the block's own, with the longer message.
    """
    try:
        yield
    except ExportError as exc:
        if not exc.placed:
            exc.args, exc.placed = (f"{what}: {exc}", *exc.args[1:]), True
        raise


def cause(exc: BaseException, *, hidden: str = "") -> str:
    """The class of a library's error and what it says, in one line."""
    text = words(exc, hidden=hidden)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def words(exc: BaseException, *, hidden: str = "") -> str:
    """What an error says, in one line of at most 300 characters, without the path of a folder."""
    text = " ".join(str(exc).split())
    if hidden:
        text = text.replace(f"{hidden}/", "").replace(hidden, "the folder")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
