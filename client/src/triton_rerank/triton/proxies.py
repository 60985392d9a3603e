"""Which proxy of the environment a target is asked through: by gRPC's rules, but never one that is on loopback.

gRPC reads ``grpc_proxy``, ``https_proxy`` and ``http_proxy``, in small letters, and asks the first that is set for
every target that ``no_grpc_proxy`` or ``no_proxy`` does not name, 127.0.0.1 among them. Of a list of addresses it would
ask the proxy for one host that has all of them for its name.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from triton_rerank.core.validate import Secret
from triton_rerank.errors import ServerUnavailableError

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_HOST = re.compile(r"\[([^\]]*)\](?::\d+)?|([^:]*)(?::\d+)?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy of the environment.

    Attributes:
        variable: where it stands.
        host: its name or address.
        port: its port.
        header: lines for its CONNECT, "" where it wants no password.
    """

    variable: str
    host: str
    port: int
    header: Secret

    def __str__(self) -> str:
        return f"the proxy http://{self.host}:{self.port} of {self.variable}"


def proxy_of(target: str) -> Proxy | None:
    """The proxy that a target is asked through, if it is one.

    Args:
        target: as the caller gave it; of a list, one host that is asked through it is enough.
    """
    proxy = _from_environment()
    return proxy if proxy is not None and any(map(_is_far, hosts(target))) else None


def proxy_arguments(target: str, address: str) -> list[tuple[str, str | int]]:
    """Channel arguments that make gRPC ask as `proxy_of` says.

    Args:
        target: as the caller gave it.
        address: the target as gRPC resolves it.

    Raises:
        ServerUnavailableError: the proxy is needed for a list, and its name cannot be looked up.
    """
    proxy = proxy_of(target)
    if proxy is None:
        return [("grpc.enable_http_proxy", 0)]
    if not address.startswith(("ipv4:", "ipv6:")) or "," not in address:
        return []  # gRPC's own way
    far = [host for host in hosts(address) if _is_far(host)]
    return [
        ("grpc.enable_http_proxy", 0),
        ("grpc.address_http_proxy", _dialled(proxy)),
        ("grpc.address_http_proxy_enabled_addresses", ",".join(far)),
        *([("grpc.http_connect_headers", str(proxy.header))] if proxy.header else []),
    ]


def own_arguments(target: str) -> list[tuple[str, str | int]]:
    """`proxy_arguments`, with the bounds on messages that tritonclient leaves out where it is given arguments."""
    bound = 2**31 - 1
    sizes: list[tuple[str, str | int]] = [(f"grpc.max_{way}_message_length", bound) for way in ("send", "receive")]
    return [*sizes, *proxy_arguments(target, target)]


def hosts(target: str) -> Sequence[str]:
    """Names and addresses in a target, without ports; none in a socket of this machine."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme == "unix":
        return []
    names = rest.rpartition("/")[2] if colon and scheme in ("dns", "ipv4", "ipv6") else target
    found = (_HOST.match(name.strip()) for name in names.split(","))
    return [(match[1] or match[2] or "").rstrip(".").lower() for match in found if match]


def is_loopback(host: str) -> bool:
    """True for a name or an address of this machine itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback or address.is_unspecified


def _is_far(host: str) -> bool:
    """Neither on this machine nor excepted by the environment."""
    return not is_loopback(host) and not any(_matches(host, entry) for entry in _exceptions())


def _exceptions() -> list[str]:
    text = next(filter(None, map(os.environ.get, _EXCEPTIONS)), "") or ""
    return [entry.strip().lower() for entry in text.split(",") if entry.strip()]


def _matches(host: str, entry: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:  # one of them is a name
        return host.endswith(entry)


def _from_environment() -> Proxy | None:
    for variable in _PROXIES:
        if url := os.environ.get(variable):
            parts = urlsplit(url)
            if parts.scheme != "http" or not parts.hostname:
                return None  # gRPC passes over what it cannot use
            return Proxy(variable, parts.hostname, _port(parts), _header(parts))
    return None


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or 80
    except ValueError:
        return 80


def _header(parts: SplitResult) -> Secret:
    if parts.username is None:
        return Secret("")
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return Secret(f"Proxy-Authorization:Basic {base64.b64encode(user).decode()}")


def _dialled(proxy: Proxy) -> str:
    try:
        (*_, address), *_ = socket.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise ServerUnavailableError(f"{proxy} cannot be looked up ({exc}); check the variable") from exc
    return f"[{address[0]}]:{proxy.port}" if ":" in str(address[0]) else f"{address[0]}:{proxy.port}"
