"""Ports: free ones on request, and a clear word on those that are taken."""

from __future__ import annotations

import socket
from collections.abc import Collection

from triton_rerank_server.errors import ServerStartError


def resolve_port(service: str, address: str, port: int, *, taken: Collection[int] = ()) -> int:
    """Return ``port`` if it can be bound, or a free one if it is 0.

    Args:
        service: "grpc", "http" or "metrics"; named in the error.
        address: the address that Triton will bind.
        port: 0 to 65535.
        taken: ports that are not chosen when any free one will do.

    Raises:
        ServerStartError: the port is taken, out of range, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ServerStartError(f"--{service}-port is {port}: it must be from 0 (a free one) to 65535")
    while (found := _bind(service, address, port)) in taken and port == 0:
        pass  # the kernel hands a port out again at once now and then
    return found


def _bind(service: str, address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as exc:
            raise ServerStartError(
                f"{service} port {port} on {address} cannot be bound ({exc.strerror}); "
                f"choose another with --{service}-port, or 0 for a free one"
            ) from exc
        return int(probe.getsockname()[1])
