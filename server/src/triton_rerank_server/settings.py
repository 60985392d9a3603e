"""How to start Triton; settings that nothing could be started with are refused by name before anything is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.models import MODES, control_mode, flag_values

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True)
class ServerConfig:
    """How to start Triton.

    Attributes:
        model_repository: folder as written by triton-rerank-export; folders without a config.pbtxt are left alone.
        address: address that gRPC, HTTP and metrics bind; loopback unless told otherwise; IPv6 as it is.
        http_address: address that HTTP binds, if not the same: this class asks Triton through it.
        grpc_port: 0 means a free one.
        http_port: 0 means a free one.
        metrics_port: 0 means a free one.
        exit_timeout_s: seconds that running requests get to finish on shutdown; ``--exit-timeout-secs`` in
            ``extra_args`` overrules it.
        start_timeout_s: seconds until the canary must have been answered.
        stall_timeout_s: seconds without an answer to a canary, and without anything that computes, after which `watch`
            takes Triton for hung.
        connection_age_s: seconds after which Triton asks a gRPC connection to be made anew, when its calls have ended,
            so that a client looks names up again and finds servers that were added; 0 lets connections live.
        log_file: Triton's output; None keeps it in a temporary file that goes with the server, `STANDARD_OUTPUT` lets
            it pass.
        extra_args: passed to tritonserver as they are, last; its folder is a temporary one, so paths must be absolute.
    """

    model_repository: Path
    address: str = "127.0.0.1"
    http_address: str | None = None
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    exit_timeout_s: int = 30
    start_timeout_s: float = 180.0
    stall_timeout_s: float = 30.0
    connection_age_s: float = 60.0
    log_file: Path | None = None
    extra_args: tuple[str, ...] = ()


def check_settings(config: ServerConfig) -> None:
    """Hold a config against its bounds.

    Raises:
        ServerStartError: a number of seconds is none or below its bound, or the model control mode is unknown.
    """
    _seconds("--exit-timeout-s", config.exit_timeout_s, or_none=True)
    _seconds("--start-timeout-s", config.start_timeout_s)
    _seconds("--stall-timeout-s", config.stall_timeout_s)
    _seconds("--connection-age-s", config.connection_age_s, or_none=True)
    mode = control_mode(config.extra_args)
    if mode is not None and mode not in MODES:
        raise ServerStartError(f"--model-control-mode={mode}: it must be one of {', '.join(MODES)}")


def _seconds(name: str, value: float, *, or_none: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or not (value or or_none):
        bound = "0 or more" if or_none else "above 0"
        raise ServerStartError(f"{name} is {value:g}: it must be a number of seconds, {bound}")


def whole_flag(arguments: Sequence[str], flag: str, default: int) -> int:
    """The number that the last flag of that name gives to tritonserver.

    Raises:
        ServerStartError: it gives none.
    """
    value = next(reversed(list(flag_values(arguments, flag))), str(default))
    if not value.isdecimal():
        raise ServerStartError(f"{flag}={value}: it must be a whole number, 0 or more")
    return int(value)
