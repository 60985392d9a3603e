"""Who may load and unload models: under ``--model-control-mode=none`` nobody but us, who unload them at the end."""

from __future__ import annotations

from collections.abc import Sequence

from triton_rerank_server.models import control_mode, flag_values

HTTP, GRPC = "--http-restricted-api", "--grpc-restricted-protocol"
_REPOSITORY = "model-repository"  # Triton's word for loading, unloading and the index


def restrictions(extra_args: Sequence[str], secret: str) -> list[str]:
    """Flags that close the repository's interface to others, where the caller asks for no control.

    Where he has closed it himself, it stays as he has it.

    Args:
        extra_args: what the caller passes to tritonserver.
        secret: for a header; local users may see it among tritonserver's arguments.
    """
    if control_mode(extra_args) != "none":
        return []
    open_to_all = [flag for flag in (HTTP, GRPC) if not any(_REPOSITORY in v for v in flag_values(extra_args, flag))]
    return [f"{flag}={_REPOSITORY}:triton-rerank={secret}" for flag in open_to_all]


def headers(arguments: Sequence[str]) -> dict[str, str]:
    """What opens all that tritonserver's arguments close on HTTP."""
    given = [value.partition(":")[2].partition("=") for value in flag_values(arguments, HTTP)]
    return {name: value for name, _, value in given}
