"""Takes a running Triton out of service without losing what it accepted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from triton_rerank_server.launch.runtime import hide_models
from triton_rerank_server.running.control import Control, ControlError

_log = logging.getLogger(__name__)
_POLL_S = 0.02

TakeAway = Callable[[set[str], float], None]


def drain(control: Control, take_away: TakeAway, *, timeout_s: float) -> bool:
    """Refuse what is new, and wait until everything that was accepted is answered.

    Told to end, Triton stops all models at once, and a request between two steps of an ensemble is lost. So the
    ensembles are unloaded first: from then on the server refuses with NOT_FOUND, which clients send to another server;
    Triton keeps an ensemble, and its steps serve it, until its last request has been answered.

    Args:
        control: of the server.
        take_away: takes models, until a time on the monotonic clock, from service, but not what runs.
        timeout_s: seconds that running requests get.

    Returns:
        False if requests may still be running.
    """
    deadline = time.monotonic() + timeout_s
    try:
        ensembles = {model for model in control.ready_models() if control.is_ensemble(model)}
        take_away(ensembles, deadline)
        while any(entry["name"] in ensembles and _is_there(entry) for entry in control.index()):
            if time.monotonic() > deadline:
                _log.warning("requests still run after %g s", timeout_s)
                return False
            time.sleep(_POLL_S)
    except ControlError as exc:
        _log.warning("not drained, requests between two steps may be lost: %s", exc)
        return False
    return True


def unload_rest(control: Control, *, timeout_s: float) -> None:
    """Unload what a drain has left, the steps: told to end, Triton looks but once a second whether they are gone.

    Args:
        control: of the server, which takes no requests any more and runs with explicit model control.
        timeout_s: seconds that they get; after that they end with Triton.
    """
    deadline = time.monotonic() + timeout_s
    try:
        for model in control.ready_models():
            control.unload(model)
        while any(_is_there(entry) for entry in control.index()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    except ControlError as exc:
        _log.debug("the steps end with Triton: %s", exc)


def by_unloading(control: Control) -> TakeAway:
    """How models are taken from a server with explicit model control."""

    def take_away(models: set[str], _deadline: float) -> None:
        """Unload them; Triton keeps each until its last request is answered."""
        for model in sorted(models):
            control.unload(model)

    return take_away


def by_hiding(control: Control, runtime: Path, model_repository: Path) -> TakeAway:
    """How they are taken from one that polls: by a repository without them, when Triton looks there the next time.

    Args:
        control: of the server.
        runtime: folder in which Triton finds its repository.
        model_repository: as the user has it; it is not touched.
    """

    def take_away(models: set[str], deadline: float) -> None:
        """Hide them, and wait until Triton has seen that they are gone."""
        try:
            rest = hide_models(runtime, model_repository, models)
        except OSError as exc:
            raise ControlError(f"the repository cannot be shown without them: {exc}") from exc
        while any(control.is_model_ready(model) for model in models):
            if time.monotonic() > deadline:
                raise ControlError("Triton did not look at its repository in time (--repository-poll-secs)")
            time.sleep(_POLL_S)
        for model in models:  # a model has a state in Triton's index only where a folder has its name
            (rest / model).mkdir()

    return take_away


def _is_there(entry: dict[str, str]) -> bool:
    return entry.get("state", "UNAVAILABLE") != "UNAVAILABLE"
