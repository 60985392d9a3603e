"""The one error of the bench package."""

from __future__ import annotations


class BenchError(RuntimeError):
    """A measurement cannot be made; the message says what was looked for and what to do."""
