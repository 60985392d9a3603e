"""The errors of the bench package, and the exit code of a run that the user ended."""

from __future__ import annotations

INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


class BenchError(RuntimeError):
    """A measurement cannot be made; the message says what was looked for and what to do."""


class PeerError(BenchError):
    """A peer cannot be loaded, died, is too slow or refused: it is left out, and the measurement goes on."""
