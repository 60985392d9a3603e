"""What the commands of our packages share: UTF-8 in any locale, and no traceback when standard output is gone."""

from __future__ import annotations

import io
import os
import sys

BROKEN_PIPE = 141  # as shells tell SIGPIPE


def use_utf8() -> None:
    """Write UTF-8 whatever the locale says; a lone surrogate is escaped. Help texts need it too, so call it first."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def written(code: int) -> int:
    """The exit code, once all output is out: a short one stays in the buffer, and would fail where nobody catches it.

    Raises:
        OSError: standard output cannot be written; a BrokenPipeError if its reader went away.
    """
    sys.stdout.flush()
    return code


def drop_output() -> None:
    """Let standard output lead nowhere: what is left in the buffer must not fail again when Python exits."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)
