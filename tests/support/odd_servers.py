"""Servers that are not what a client expects: mute, encrypted, restricted."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import trustme
from support.tritons import ShortLived

from triton_rerank_server import ServerConfig

_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty HTTP/2 SETTINGS frame: enough for gRPC to call it a connection
_ACCEPT = """
import socket, sys
listener, held = socket.socket(fileno=int(sys.argv[1])), []
while True:
    held.append(listener.accept()[0])
    held[-1].sendall(bytes.fromhex(sys.argv[2]))
"""


@contextlib.contextmanager
def silent(*, greets: bool) -> Iterator[str]:
    """A target that accepts connections and never answers a call; with ``greets`` it speaks HTTP/2 so far."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = (_SETTINGS if greets else b"").hex()
        process = subprocess.Popen(
            [sys.executable, "-c", _ACCEPT, str(listener.fileno()), said], pass_fds=[listener.fileno()]
        )
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.kill()
            process.wait()


class UncheckedServer(ShortLived):
    """A Triton that plain gRPC does not reach, so that its readiness is asked by HTTP, and no canary is scored."""

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.start_timeout_s
        while not self._is_ready():
            self._check_alive(deadline)
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v2/health/ready", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def start_unchecked(repository: Path, *arguments: str) -> UncheckedServer:
    """Not started yet; a context manager."""
    config = ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, extra_args=arguments)
    return UncheckedServer(config)


def write_certificates(folder: Path) -> tuple[str, ...]:
    """Write ca.pem, server.pem, client.pem (each with a .key.pem), other.pem (nobody's authority) and garbage.pem.

    Returns:
        Triton's arguments for mutual TLS.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
    for name in ("server", "client"):
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key.pem"))
    (folder / "garbage.pem").write_bytes(b"not a certificate")
    return (
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={folder / 'server.pem'}",
        f"--grpc-server-key={folder / 'server.key.pem'}",
        f"--grpc-root-cert={folder / 'ca.pem'}",
    )
