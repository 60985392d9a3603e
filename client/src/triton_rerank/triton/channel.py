"""How a gRPC channel to Triton is set up: targets, TLS, balancing, keepalive, retries. gRPC does the work.

Sources: grpc/doc/service_config.md and keepalive.md, gRFC A6 (client retries), include/grpc/impl/channel_arg_names.h.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc

from triton_rerank.contract import MAX_REQUEST_BYTES
from triton_rerank.core.numbers import real, whole
from triton_rerank.core.validate import check_headers
from triton_rerank.errors import ConfigurationError, InvalidRequestError
from triton_rerank.triton.proxies import proxy_arguments
from triton_rerank.triton.targets import SCHEMES

Compression = Literal["gzip", "deflate"]
Split = Literal["auto", "padding", "limits"]
ChannelArguments = list[tuple[str, str | int]]
COMPRESSION = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

_MAX_MESSAGE_BYTES = 2**31 - 1  # tritonclient's own; gRPC's is 4 MiB
_RETRY_TOKENS, _TOKENS_PER_SUCCESS = 100, 0.1  # no retry once half of the tokens are spent on failures
# A server that is draining, or has lost the model, refuses at once and would be asked again and again, for the three
# seconds that Triton takes to end. One that answered nothing but errors for an interval is left out for a while, and a
# retry comes later than that is noticed.
_OUTLIERS: dict[str, Any] = {
    "interval": "0.1s",
    "baseEjectionTime": "2s",
    "maxEjectionTime": "10s",
    "maxEjectionPercent": 50,
}
_CONNECT_MS = 2000  # far away, a TLS handshake takes half a second
_FIRST_RETRY = "0.2s"  # a fifth less at times: gRPC's jitter


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates of a TLS channel; all files are PEM.

    Attributes:
        root_certificates: who may sign the server's; None means gRPC's default roots.
        private_key: of the client, for mutual TLS.
        certificate_chain: of the client, for mutual TLS.
        server_name: name in the server's certificate, where it is not the host in the target.
    """

    root_certificates: str | Path | None = None
    private_key: str | Path | None = None
    certificate_chain: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(self, name)
            if not isinstance(path, str | Path | None) or "-----BEGIN" in str(path):  # what it holds is not shown
                raise ConfigurationError(f"Tls: {name} must be the path of a PEM file, not what stands in the file")


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """How to talk to Triton.

    Attributes:
        tls: None means plain text.
        headers: gRPC metadata of every call, for example ``{"triton-grpc-protocol-<key>": "<value>"}`` for restricted
            protocols.
        compression: of requests; None, since on a fast network it costs more than it saves.
        split: "padding" splits a list where that saves padding; "limits" only where the server's limits want it; "auto"
            is the latter where the server's queues are bounded, since Triton pauses between queued requests then.
        concurrency: sub-requests of one call that are under way at a time; None means 8, or one for each target of a
            list where the server's queues are bounded.
        retries: how often gRPC sends a request again that met UNAVAILABLE, NOT_FOUND or CANCELLED (a server that ends
            says all three) or INTERNAL (its backend process or its device died), with jitter, within the deadline and
            within a budget that failures use up. With 1 there are never more than twice the requests on the wire; with
            more, a few requests may be sent 1 + retries times. None means 1, or 2 for a list of targets: before it is
            known that one of them ends, it may be met twice.
        keepalive_s: a connection with calls under way is probed this often; one that died unseen is given up after
            ``keepalive_timeout_s`` more.
        keepalive_timeout_s: see there.
        max_reconnect_s: a server that is gone is tried again at least this often.
        lookup_s: names in the target are looked up again this often while calls are made, so that servers which are
            added get calls too.
    """

    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    compression: Compression | None = None
    split: Split = "auto"
    concurrency: int | None = None
    retries: int | None = None
    keepalive_s: float = 10.0
    keepalive_timeout_s: float = 5.0
    max_reconnect_s: float = 2.0
    lookup_s: float = 30.0

    def __post_init__(self) -> None:
        for name, least, most in (("concurrency", 1, 1024), ("retries", 0, 4)):  # gRPC bounds attempts at 5
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), least=least, most=most))
        if self.split not in ("auto", "padding", "limits"):
            raise ConfigurationError(f"split is {self.split!r}: it must be 'auto', 'padding' or 'limits'")
        for name in ("keepalive_s", "keepalive_timeout_s", "max_reconnect_s", "lookup_s"):
            must = "a number of seconds from 0.01 to 3600"
            object.__setattr__(self, name, real(name, getattr(self, name), least=0.01, most=3600, must=must))
        try:
            object.__setattr__(self, "headers", check_headers(self.headers))
        except InvalidRequestError as exc:
            raise ConfigurationError(str(exc)) from exc
        if not isinstance(self.tls, Tls | None):
            raise ConfigurationError(f"tls is of type {type(self.tls).__name__}: it must be Tls(…), or None")
        if self.compression not in (None, "gzip", "deflate"):
            raise ConfigurationError(f"compression is {self.compression!r}: it must be 'gzip', 'deflate' or None")


def open_channel(api: Any, address: str, target: str, options: TritonOptions) -> Any:
    """A channel that connects when it is first used.

    Args:
        api: ``grpc`` or ``grpc.aio``.
        address: the target as gRPC resolves it, from `grpc_target`.
        target: as the caller gave it.
        options: TLS, retries and so on.

    Raises:
        ConfigurationError: a certificate cannot be read.
        ServerUnavailableError: a proxy cannot be looked up.
    """
    arguments = channel_arguments(target, options, _listed(address)) + proxy_arguments(target, address)
    tls = credentials(options.tls)
    if tls is None:
        return api.insecure_channel(address, options=arguments)
    return api.secure_channel(address, tls, options=arguments)


def channel_arguments(target: str, options: TritonOptions, listed: int = 1) -> ChannelArguments:
    """Arguments of the channel; ``listed`` is how many addresses the target is known to have."""
    arguments: ChannelArguments = [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _milliseconds(options.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _milliseconds(options.keepalive_timeout_s)),
        # gRPC 1.85 never starts the timer above (keepalive_ping_timeout_handle in writing.cc); a ping's own is 60 s.
        ("grpc.http2.ping_timeout_ms", _milliseconds(options.keepalive_timeout_s)),
        ("grpc.initial_reconnect_backoff_ms", _milliseconds(min(0.2, options.max_reconnect_s))),
        ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),  # its name notwithstanding, how long connecting may take
        ("grpc.max_reconnect_backoff_ms", _milliseconds(options.max_reconnect_s)),
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
        ("grpc.service_config", json.dumps(service_config(options, listed))),
        ("grpc.enable_retries", 1),
        # A request larger than this is not retried; gRPC's default of 256 KiB would leave out most of ours.
        ("grpc.per_rpc_retry_buffer_size", 2 * MAX_REQUEST_BYTES),
    ]
    authority = _authority(target, options.tls)
    return [*arguments, ("grpc.default_authority", authority)] if authority else arguments


def service_config(options: TritonOptions, listed: int = 1) -> dict[str, Any]:
    """Balancing over all addresses of the target, and what is sent again.

    Args:
        options: how to talk to Triton.
        listed: addresses that the target is known to have; a name of one may stand for more.
    """
    method: dict[str, Any] = {"name": [{"service": "inference.GRPCInferenceService"}]}
    several = listed > 1
    retries = (2 if several else 1) if options.retries is None else options.retries
    # With few calls, no other server may have had one in the interval. A lone address must not be left out, ever.
    failing = {"threshold": 99, "enforcementPercentage": 100, "minimumHosts": 1 if several else 2, "requestVolume": 1}
    if retries:
        method["retryPolicy"] = {
            "maxAttempts": 1 + retries,
            "initialBackoff": _FIRST_RETRY,
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            # NOT_FOUND: Triton has unloaded the model, as it does before it ends. CANCELLED: by a server that ends.
            # INTERNAL: a backend process died, or its device.
            "retryableStatusCodes": ["UNAVAILABLE", "NOT_FOUND", "CANCELLED", "INTERNAL"],
        }
    outliers = {**_OUTLIERS, "failurePercentageEjection": failing}
    return {
        "loadBalancingConfig": [
            {"outlier_detection_experimental": {**outliers, "childPolicy": [{"round_robin": {}}]}},
            {"round_robin": {}},  # for a gRPC that does not have the former
        ],
        "methodConfig": [method],
        "retryThrottling": {"maxTokens": _RETRY_TOKENS, "tokenRatio": _TOKENS_PER_SUCCESS},
    }


def credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    """Channel credentials, None for plain text.

    Raises:
        ConfigurationError: a file cannot be read, or a key came without its certificate.
    """
    if tls is None:
        return None
    if (tls.private_key is None) != (tls.certificate_chain is None):
        raise ConfigurationError("Tls: private_key and certificate_chain go together; give both, or neither")
    return grpc.ssl_channel_credentials(
        _read(tls.root_certificates), _read(tls.private_key), _read(tls.certificate_chain)
    )


def _authority(target: str, tls: Tls | None) -> str | None:
    """The name that the server's certificate must have, where gRPC would not find it in the target."""
    if tls is None:
        return None
    first = target.split(",")[0].strip()
    return tls.server_name or (first if "," in target and not target.startswith(SCHEMES) else None)


def _listed(address: str) -> int:
    """Different addresses in what gRPC resolves."""
    return len(set(address.removeprefix("ipv4:").removeprefix("ipv6:").split(",")))


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError, TypeError) as exc:  # no such file, NUL in its name, no name at all
        raise ConfigurationError(f"{path}: the certificate cannot be read ({exc}); check Tls") from exc


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
