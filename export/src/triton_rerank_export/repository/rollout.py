"""Tells a running Triton to serve what the repository says now, without dropping a request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triton_rerank import repository as reader
from triton_rerank.contract import ENCODER_SUFFIX, TOKENIZER_SUFFIX
from triton_rerank.triton.proxies import own_arguments
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository import replacement, staging

_LOAD_TIMEOUT_S = 600.0  # a large model is read and warmed up meanwhile
_ASK_TIMEOUT_S = 30.0
_FINISH_S = 2.0  # that requests get which began with an ensemble's old config, to come to its last step
_NOT_ALLOWED = ("protocol is restricted", "is not allowed if polling is enabled")  # of Triton's messages
_CLOSED = (
    "nobody may load models there: with --model-control-mode=poll it takes the change by itself, with none, or where "
    "the interface is restricted, when it is started anew"
)


def reload(
    target: str,
    name: str,
    *,
    repository: Path | None = None,
    timeout_s: float = _LOAD_TIMEOUT_S,
    on_step: Callable[[str], object] = lambda _: None,
) -> list[int]:
    """Have a server with ``--model-control-mode=explicit`` load a model again.

    First the steps, whose new version is loaded and warmed up beside the one that serves; only when both are ready,
    the ensemble, which is swapped at once. Requests on their way finish on the version that they began with. In one
    call Triton would do the same, but take the ensemble away if a step fails. It also takes an ensemble away whose
    batches are larger than those of a step; so where they become smaller, the steps keep the larger ones until the
    ensemble is swapped. A model that was replaced shares no config with the one that is served: its steps are loaded
    under names of their own first, and there is one more of each in memory for that while. The repository is closed to
    others until they have their own names again: a second activation would give the ensemble the very steps that the
    first is about to unload.

    Args:
        target: ``host:port`` of its gRPC service.
        name: public model name.
        repository: the one that the server reads, where this machine can; without it, smaller batches and a model that
            was replaced have a gap while they load.
        timeout_s: seconds that loading each of the three may take.
        on_step: called where another process has to be waited for.

    Returns:
        Versions of the ensemble that the server serves now.

    Raises:
        ExportError: no server, or it refuses; it serves on what it served, and the message says what.
    """
    import grpc
    from tritonclient import grpc as triton

    with (
        contextlib.closing(triton.InferenceServerClient(target, channel_args=own_arguments(target))) as client,
        contextlib.ExitStack() as held,
    ):
        try:
            steps = (name + TOKENIZER_SUFFIX, name + ENCODER_SUFFIX)
            if repository is not None:
                held.enter_context(staging.told(repository))
                locked = held.enter_context(staging.locked(repository, name, on_step))
                if _is_replaced(client, name, repository):
                    _leave_replaced(client, name, steps, locked, timeout_s)
                else:
                    held.close()
            shrinking = {} if repository is None else _larger(client, name, steps, repository)
            for step in steps:
                client.load_model(step, config=shrinking.get(step), client_timeout=timeout_s)
            client.load_model(name, client_timeout=timeout_s)
            for step in shrinking:
                client.load_model(step, client_timeout=timeout_s)
            lent = list(filter(client.is_model_ready, replacement.working_names(name).values()))
            time.sleep(_FINISH_S if lent else 0)
            for step in lent:
                client.unload_model(step, client_timeout=timeout_s)
            return _served(client, name)
        except (triton.InferenceServerException, grpc.RpcError) as exc:
            closed = any(words in str(exc) for words in _NOT_ALLOWED)
            raise ExportError(
                f"{target}: {name} was not loaded ({exc}); {_CLOSED if closed else _state(client, name, repository)}"
            ) from exc


def _is_replaced(client: Any, name: str, repository: Path) -> bool:
    """Does it serve a version that is in the repository no more?"""
    from tritonclient import grpc as triton

    try:
        served = _served(client, name)
    except triton.InferenceServerException:
        return False  # nothing is served that could be taken away
    return not set(served) <= set(reader.manifest_files(repository, name))


def _leave_replaced(client: Any, name: str, steps: Sequence[str], repository: Path, timeout_s: float) -> None:
    """Have the new steps serve under names of their own, and the old ones end; the repository is locked."""
    with replacement.lent_names(repository, name) as lent:
        index = client.get_model_repository_index(client_timeout=_ASK_TIMEOUT_S)
        if not set(lent) <= {model.name for model in index.models}:
            return  # it reads another folder than this one
        for model in (*lent, name):
            client.load_model(model, client_timeout=timeout_s)
    time.sleep(_FINISH_S)
    for step in steps:
        client.unload_model(step, client_timeout=timeout_s)


def _larger(client: Any, name: str, steps: Sequence[str], repository: Path) -> dict[str, str]:
    """Steps whose batches become smaller than those of the ensemble that is served -> their config, with its size."""
    from google.protobuf import json_format
    from tritonclient import grpc as triton

    try:
        served = client.get_model_config(name, client_timeout=_ASK_TIMEOUT_S).config.max_batch_size
    except triton.InferenceServerException:
        return {}  # nothing is served that could be taken away
    found = {}
    for step in steps:
        config = reader.read_config(repository, step)
        if config.max_batch_size < served:
            config.max_batch_size = served
            found[step] = json_format.MessageToJson(config, preserving_proto_field_name=True)
    return found


def _served(client: Any, name: str) -> list[int]:
    return [int(version) for version in client.get_model_metadata(name, client_timeout=_ASK_TIMEOUT_S).versions]


def _state(client: Any, name: str, repository: Path | None) -> str:
    import grpc
    from tritonclient import grpc as triton

    try:
        served = ", ".join(str(version) for version in _served(client, name))
    except (triton.InferenceServerException, grpc.RpcError):
        return "is it there, and does it run with --model-control-mode=explicit?"
    later = "a server that was started now would load the other one"
    if repository is not None and _is_replaced(client, name, repository):
        return f"it serves version {served} as before, which was replaced in {repository}; {later}"
    return (
        f"it serves version {served} as before. To have the repository say so too, activate --version {served}; {later}"
    )
