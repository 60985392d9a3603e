"""How the gateway is served: by uvicorn, closed by default."""

from __future__ import annotations

import ipaddress
import ssl
from typing import Any

import uvicorn
import uvloop

from triton_rerank import ConfigurationError
from triton_rerank_gateway.admission.keys import Keys
from triton_rerank_gateway.gateway import Gateway
from triton_rerank_gateway.http.app import make_app
from triton_rerank_gateway.http.connection import bounded
from triton_rerank_gateway.settings import Settings


class Loop(uvloop.Loop):
    """The event loop to serve in: TLS's handshake has a bound, which uvicorn cannot be told.

    Args:
        handshake_s: seconds that a caller has for it; its connection is closed then.
    """

    def __init__(self, handshake_s: float) -> None:
        super().__init__()
        self._handshake_s = handshake_s

    def create_server(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        """As uvloop's."""
        if options.get("ssl"):
            options["ssl_handshake_timeout"] = self._handshake_s
        return super().create_server(protocol_factory, *arguments, **options)


def make_server(gateway: Gateway) -> uvicorn.Server:
    """A server that is not started yet.

    Raises:
        ConfigurationError: no keys on an address that others can reach, or a certificate that cannot be served.
    """
    settings = gateway.settings
    check_closed(settings, gateway.keys)
    _check_certificate(settings)
    config = uvicorn.Config(
        make_app(gateway),
        host=settings.address,
        port=settings.port,
        loop="uvloop",
        http=bounded(gateway),
        ws="none",
        log_config=None,
        access_log=False,  # the gateway's own line says more
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_s,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    return uvicorn.Server(config)


def check_closed(settings: Settings, keys: Keys) -> None:
    """Closed by default.

    Raises:
        ConfigurationError: others can reach the address, there is no key, and ``--no-auth`` was not given.
    """
    if keys or not settings.auth or _is_loopback(settings.address):
        return
    raise ConfigurationError(
        f"address is {settings.address!r}, which others can reach, and there is no key: make one with --new-key NAME, "
        "bind 127.0.0.1, or let everybody in with --no-auth"
    )


def _check_certificate(settings: Settings) -> None:
    certificate, key = settings.tls_certificate, settings.tls_key
    if not certificate and not key:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate or "", key)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigurationError(
            f"tls_certificate is {certificate!r} and tls_key {key!r}: no PEM files of a certificate and its key ({exc})"
        ) from exc


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
