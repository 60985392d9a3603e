"""An HTTP proxy on loopback that knows CONNECT only, and takes every host for one server."""

from __future__ import annotations

import contextlib
import socket
import threading

from support.stand_in import pump


class ConnectProxy:
    """Passes what comes through it on to one port of 127.0.0.1, whatever host was asked for.

    Args:
        port: of the server behind it.
        refuses: answers 403 in place of connecting.

    Attributes:
        port: its own.
        asked: host and port of each CONNECT.
        passwords: what stood in each Proxy-Authorization.
    """

    def __init__(self, port: int, *, refuses: bool = False) -> None:
        self.asked: list[str] = []
        self.passwords: list[str] = []
        self._target = ("127.0.0.1", port)
        self._refuses = refuses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ConnectProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(4096)
            first, *lines = head.decode("latin-1").split("\r\n")
            self.asked.append(first.split()[1])
            self.passwords += [line.partition(": ")[2] for line in lines if line.startswith("Proxy-Authorization")]
            if self._refuses:
                near.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(self._target) as far:
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(far, near, lambda _: None), daemon=True)
                back.start()
                pump(near, far, lambda _: None)
                back.join(timeout=30)
