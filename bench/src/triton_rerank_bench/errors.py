"""The one error of the bench package, and the exit code of a run that the user ended."""

from __future__ import annotations

INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


class BenchError(RuntimeError):
    """A measurement cannot be made; the message says what was looked for and what to do."""
