"""What in Triton's log says why it did not start, or died."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINES = 25
_WIDTH = 1000
_HEADER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+\] ?")  # glog: level, date, time, thread, file:line
_TOLD = re.compile(r"error:|terminate called|  what\(\)|.*Signal \(|bash: |.*error while loading shared|[\w.]*Error\b")
_NOISE = ("CudaDriverHelper", "unable to create stream", "NVML")  # of machines without a GPU


def explanation(log: str, *, recent: str | None = None) -> str:
    """The error lines of a log, or its last lines where it has none; indented, for a message.

    Of an error that a backend raised in Python, the exception is kept and not the frames that it came through.

    Args:
        log: the whole.
        recent: its end, in which the errors are looked for; None means all of it. What Triton logged of an earlier
            switch of versions is not why it died.
    """
    errors = list(dict.fromkeys(_errors((log if recent is None else recent).splitlines())))
    told = errors or [line for line in log.splitlines() if line.strip() and not _is_noise(line)]
    return "\n".join(f"  {line[:_WIDTH]}" for line in told[-_LINES:]) or "  (its log is empty)"


def _is_noise(line: str) -> bool:
    return line.startswith(("+--", "| ")) or any(noise in line for noise in _NOISE)


def _errors(lines: list[str]) -> Iterator[str]:
    """Errors, each without its time; a traceback by its last line."""
    in_error = False
    for line in lines:
        if any(noise in line for noise in _NOISE):
            in_error = False
        elif header := _HEADER.match(line):
            in_error = line[0] in "EF"
            if in_error and (text := line[header.end() :].strip('"')):
                yield text
        elif _TOLD.match(line):
            yield line.strip().rstrip('"')
        elif in_error and line.strip() and not line.startswith(("At:", " ", "|", "+", "Traceback", '"')):
            yield line.strip()
