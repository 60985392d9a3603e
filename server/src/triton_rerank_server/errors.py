"""The one error of the server package."""

from __future__ import annotations


class ServerStartError(RuntimeError):
    """Triton did not start, did not become ready, or died; the message ends with the last lines of its log."""
