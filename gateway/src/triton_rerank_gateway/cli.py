"""``triton-rerank-gateway``: stand in front of Tritons that are there, and stay until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

import uvicorn
import uvloop

from triton_rerank import ConfigurationError
from triton_rerank_gateway import settings as options
from triton_rerank_gateway.admission.keys import new_key
from triton_rerank_gateway.gateway import Gateway
from triton_rerank_gateway.http.serving import Loop, make_server
from triton_rerank_gateway.observability import tracing
from triton_rerank_gateway.observability.record import JsonLines
from triton_rerank_gateway.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 after SIGTERM or SIGINT and a clean drain, 3 for a configuration that cannot be, 1 if the port is taken.
    """
    try:
        flags = options.load(arguments)
        if flags.new_key:
            secret, lines = new_key(flags.new_key)
            print(f"# the key, shown once: {secret}\n{lines}")
            return 0
        if flags.print_config:
            print(options.as_toml(flags.settings), end="")
            return 0
        return run(flags.settings)
    except ConfigurationError as exc:
        print(f"triton-rerank-gateway: {exc}", file=sys.stderr)
        return exc.exit_code


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: settings that cannot be.
    """
    log_as_json(settings.log_level)
    if settings.otlp_endpoint:
        tracing.export_to(settings.otlp_endpoint)
    gateway = Gateway(settings)
    server = make_server(gateway)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn drains, then raises the signal again for these
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    code: int = uvloop.run(_serve(server, gateway), loop_factory=lambda: Loop(settings.head_timeout_s))
    return code


async def _serve(server: uvicorn.Server, gateway: Gateway) -> int:
    telling = asyncio.create_task(_tell(server, gateway))
    try:
        await server.serve()
    except SystemExit:  # uvicorn's, if it cannot bind; it has logged why
        return 1
    finally:
        telling.cancel()
    return 0 if server.started else 1


async def _tell(server: uvicorn.Server, gateway: Gateway) -> None:
    """Say where it listens, once it does."""
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    scheme = "https" if gateway.settings.tls_certificate else "http"
    who = f"{len(gateway.keys.all)} keys may ask" if gateway.keys else "anybody who reaches this address may ask"
    names = ", ".join(model.name for model in gateway.models.all)
    print(f"serving {names} on {scheme}://{gateway.settings.address}:{port}  ({who}; Ctrl-C stops it)", flush=True)


def log_as_json(level: str) -> None:
    """One line of JSON an entry, on standard error."""
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigurationError(f"log_level is {level!r:.80}: it must be debug, info, warning or error")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


if __name__ == "__main__":
    sys.exit(main())
