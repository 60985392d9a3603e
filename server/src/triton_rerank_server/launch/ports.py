"""Addresses and ports: free ones on request, and the true reason for those that cannot be had."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Collection

from triton_rerank_server.errors import ServerStartError

_REASONS = {
    errno.EADDRINUSE: "it is in use; choose another with {flag}, or 0 for a free one",
    errno.EACCES: "ports below 1024 need a privilege that this user lacks; choose a higher one with {flag}",
    errno.EPERM: "ports below 1024 need a privilege that this user lacks; choose a higher one with {flag}",
    errno.EADDRNOTAVAIL: "this machine does not have that address; choose one of its own with --address",
    errno.EAFNOSUPPORT: "this machine does not speak that kind of address; choose another with --address",
}


def hold_port(service: str, address: str, port: int, *, taken: Collection[int] = ()) -> socket.socket:
    """Bind ``port``, or a free one if it is 0, without listening.

    Until the socket is closed, nobody else is given that port as a free one. Triton, which asks for it by its number,
    gets it all the same, since both allow reuse and this one does not listen.

    Args:
        service: "grpc", "http" or "metrics"; named in the error.
        address: the address that Triton will bind.
        port: 0 to 65535.
        taken: ports that are not chosen when any free one will do.

    Raises:
        ServerStartError: the port is taken, out of range or not allowed, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ServerStartError(f"--{service}-port is {port}: it must be from 0 (a free one) to 65535")
    while port_of(held := _bind(service, address, port)) in taken and port == 0:
        held.close()  # another address may have had that one free
    return held


def resolve_port(service: str, address: str, port: int, *, taken: Collection[int] = ()) -> int:
    """As `hold_port`, but nothing is held: the number only."""
    with hold_port(service, address, port, taken=taken) as held:
        return port_of(held)


def port_of(held: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(held.getsockname()[1])


def bare_address(address: str) -> str:
    """An address without the brackets that IPv6 has before a port."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def address_flag(service: str, address: str) -> str:
    """Triton's flag for an address: gRPC wants IPv6 in brackets, its HTTP library with a scheme."""
    if ":" in address:
        address = f"[{address}]" if service == "grpc" else f"ipv6:{address}"
    return f"--{service}-address={address}"


def reachable(address: str, port: int) -> str:
    """``host:port`` by which this machine reaches a service that is bound to ``address``; IPv6 in brackets."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(_shortest(address), address)  # noqa: S104 - compared, not bound
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _shortest(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address  # a name


def _bind(service: str, address: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(socket.socket(family, kind, protocol))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(where)
            stack.pop_all()
            return held
    except (OSError, UnicodeError) as exc:
        number = exc.errno if isinstance(exc, OSError) and not isinstance(exc, socket.gaierror) else None
        reason = _REASONS.get(number or 0, f"{getattr(exc, 'strerror', None) or exc}; choose another with --address")
        raise ServerStartError(
            f"{service} port {port} on {address} cannot be bound: {reason.format(flag=f'--{service}-port')}"
        ) from exc
