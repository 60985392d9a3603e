"""Settings that nothing could be started with, refused by name before anything is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.models import MODES, control_mode, flag_values

if TYPE_CHECKING:
    from triton_rerank_server.process import ServerConfig


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
