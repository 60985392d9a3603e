"""Takes a running Triton out of service without losing what it accepted."""

from __future__ import annotations

import logging
import time

from triton_rerank_server.control import Control, ControlError

_log = logging.getLogger(__name__)
_POLL_S = 0.02


def drain(control: Control, *, timeout_s: float) -> bool:
    """Refuse what is new, and wait until everything that was accepted is answered.

    Told to end, Triton stops all models at once, and a request between two steps of an ensemble is lost. So the
    ensembles are unloaded first: from then on the server is not ready and refuses with NOT_FOUND, which clients send
    to another server; Triton keeps an ensemble, and its steps serve it, until its last request has been answered.

    Args:
        control: of a server with explicit model control; of another one nothing can be unloaded.
        timeout_s: seconds that running requests get.

    Returns:
        False if requests may still be running.
    """
    deadline = time.monotonic() + timeout_s
    try:
        ensembles = {model for model in control.ready_models() if control.is_ensemble(model)}
        for model in sorted(ensembles):
            control.unload(model)
        while any(entry["name"] in ensembles and _is_there(entry) for entry in control.index()):
            if time.monotonic() > deadline:
                _log.warning("requests still run after %g s", timeout_s)
                return False
            time.sleep(_POLL_S)
    except ControlError as exc:
        _log.warning("not drained, requests between two steps may be lost: %s", exc)
        return False
    return True


def _is_there(entry: dict[str, str]) -> bool:
    return entry.get("state", "UNAVAILABLE") != "UNAVAILABLE"
