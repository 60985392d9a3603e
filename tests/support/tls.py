"""Certificates for a test, and a Triton that wants TLS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import trustme
from support.tritons import ShortLived

from triton_rerank import Tls
from triton_rerank_server import ServerConfig


@dataclass(frozen=True)
class Authority:
    """Files of one certificate authority, with a server's and a client's certificate."""

    root: Path
    server_key: Path
    server_chain: Path
    client_key: Path
    client_chain: Path

    @classmethod
    def write(cls, folder: Path, *names: str, expired: bool = False) -> Authority:
        """For a server of these names; "localhost" must be among them. ``expired``: both certificates, an hour ago."""
        folder.mkdir()
        authority = trustme.CA()
        end = datetime.now(timezone.utc) - timedelta(hours=1) if expired else None
        found = cls(*(folder / f"{name}.pem" for name in ("root", "server-key", "server", "client-key", "client")))
        authority.cert_pem.write_to_path(str(found.root))
        for certificate, key, chain in (
            (authority.issue_cert(*names, not_after=end), found.server_key, found.server_chain),
            (authority.issue_cert("client@example.test", not_after=end), found.client_key, found.client_chain),
        ):
            certificate.private_key_pem.write_to_path(str(key))
            certificate.cert_chain_pems[0].write_to_path(str(chain))
        return found

    def tls(self, *, mutual: bool = True, server_name: str | None = None) -> Tls:
        """For a client."""
        key, chain = (self.client_key, self.client_chain) if mutual else (None, None)
        return Tls(self.root, key, chain, server_name)


class TlsTriton(ShortLived):
    """A TritonServer whose gRPC port speaks TLS only; its readiness is asked over HTTP as ever."""

    def __init__(self, repository: Path, authority: Authority, *, mutual: bool) -> None:
        flags = [
            f"--grpc-use-ssl{'-mutual' if mutual else ''}=true",
            f"--grpc-server-cert={authority.server_chain}",
            f"--grpc-server-key={authority.server_key}",
            f"--grpc-root-cert={authority.root}",
        ]
        free = ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, extra_args=tuple(flags))
        super().__init__(replace(free, start_timeout_s=60.0))
