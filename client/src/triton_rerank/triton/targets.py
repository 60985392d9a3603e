"""Targets: their form, and what the names in them stand for."""

from __future__ import annotations

import ipaddress
import re
import socket

from triton_rerank.errors import ConfigurationError, ServerUnavailableError

SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:")  # gRPC's own, passed on as they are
_HOST_AND_PORT = re.compile(r"(?:\[[^\s\[\]/]+\]|[^\s:/\[\]]+):([0-9]{1,5})")  # an IPv6 address stands in brackets


def check_target(target: object) -> str:
    """Check the form of a target; nothing is resolved.

    Args:
        target: ``host:port``, several of them with commas between, or a gRPC name (``dns:…``, ``ipv4:…``, ``unix:…``).

    Raises:
        ConfigurationError: it has another form.
    """
    if not isinstance(target, str) or not target or not (target.isascii() and target.isprintable()):
        raise ConfigurationError(f"target is {target!r:.80}: it must be host:port of Triton's gRPC endpoint, in ASCII")
    if target.startswith(SCHEMES):
        return target
    for part in target.split(","):
        found = _HOST_AND_PORT.fullmatch(part.strip())
        if found is None or not 0 < int(found[1]) < 65536:
            raise ConfigurationError(
                f"target is {target!r:.80}: {part.strip()!r:.80} is not host:port of Triton's gRPC endpoint (no "
                "scheme, IPv6 in brackets, a port from 1 to 65535); several have commas between them"
            )
    return target


def has_names(target: str) -> bool:
    """True for names that `look_up` can look up: not for addresses, a DNS server of its own, or a socket."""
    name = target.removeprefix("dns:///")
    return not name.startswith(SCHEMES) and not all(map(_is_address, name.split(",")))


def needs_lookup(target: str) -> bool:
    """True for a list with names in it: gRPC takes lists of addresses only, so `grpc_target` must look them up."""
    return "," in target and has_names(target)


def grpc_target(target: str) -> str:
    """The name that gRPC resolves; hosts of a list are looked up here, which may take long.

    Raises:
        ServerUnavailableError: a host of a list cannot be looked up.
        ConfigurationError: a list mixes IPv4 and IPv6.
    """
    if target.startswith(SCHEMES) or "," not in target:
        return target.strip()
    return look_up(target)


def look_up(target: str) -> str:
    """The addresses that a target's names stand for at present, as gRPC takes a list of them; blocks.

    A name may stand for several, and in a list of names all are used. All are IPv4 if that is possible, else IPv6.

    Args:
        target: names and addresses, one or a list, of the form that `check_target` wants.

    Raises:
        ServerUnavailableError: a host cannot be looked up.
        ConfigurationError: there is no IP version that all hosts have.
    """
    found = [_addresses(part.strip()) for part in target.removeprefix("dns:///").split(",")]
    for family in ("ipv4", "ipv6"):
        if all(family in addresses for addresses in found):
            listed = dict.fromkeys(address for addresses in found for address in addresses[family])
            return f"{family}:{','.join(listed)}"
    raise ConfigurationError(f"target is {target!r}: a list must be all IPv4 or all IPv6")


def _is_address(part: str) -> bool:
    try:
        ipaddress.ip_address(part.strip().rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _addresses(part: str) -> dict[str, list[str]]:
    """Of one host and its port: IP version -> addresses with the port, sorted."""
    host, _, port = part.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:  # UnicodeError: a label that is empty or too long
        raise ServerUnavailableError(f"{host!r} cannot be looked up ({exc}); check the name") from exc
    by_version: dict[str, list[str]] = {}
    for family, *_, address in sorted(set(found), key=lambda entry: str(entry[4][0])):
        if family == socket.AF_INET:
            by_version.setdefault("ipv4", []).append(f"{address[0]}:{port}")
        elif family == socket.AF_INET6:
            by_version.setdefault("ipv6", []).append(f"[{address[0]}]:{port}")
    return by_version
