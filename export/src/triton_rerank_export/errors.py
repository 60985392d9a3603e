"""The one error of export: its message is what the user reads."""

from __future__ import annotations


class ExportError(RuntimeError):
    """Export, check or training cannot go on; the model repository is as it was.

    The message says what was wrong, the value, the bound and what to do.
    """
