"""A DNS server on loopback that knows one name: what gRPC's resolver asks of one (RFC 1035)."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence

_A, _IN = 1, 1
_ANSWER, _AUTHORITATIVE, _NO_SUCH_NAME = 0x8000, 0x0400, 3


class NameServer:
    """Answers A questions for one name over UDP, and counts them; other types have no records.

    Args:
        name: for example ``triton.test``.
        addresses: IPv4; may be changed while it runs.
    """

    def __init__(self, name: str, addresses: Sequence[str]) -> None:
        self.name = name
        self.addresses = list(addresses)
        self.questions = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.port = self._socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                packet, sender = self._socket.recvfrom(2048)
            except TimeoutError:
                continue
            self._socket.sendto(self._answer(packet), sender)

    def _answer(self, packet: bytes) -> bytes:
        name, end = _read_name(packet, 12)
        question, (kind, _) = packet[12 : end + 4], struct.unpack("!HH", packet[end : end + 4])
        known = name.lower() == self.name
        self.questions += known and kind == _A
        addresses = self.addresses if known and kind == _A else []
        flags = _ANSWER | _AUTHORITATIVE | (0 if known else _NO_SUCH_NAME)
        header = packet[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0)
        return header + question + b"".join(_record(address) for address in addresses)


def _record(address: str) -> bytes:
    """The name is that of the question, at offset 12; it may be kept for a second."""
    return struct.pack("!HHHIH", 0xC000 | 12, _A, _IN, 1, 4) + socket.inet_aton(address)


def _read_name(packet: bytes, start: int) -> tuple[str, int]:
    labels = []
    while packet[start]:
        labels.append(packet[start + 1 : start + 1 + packet[start]].decode("ascii"))
        start += 1 + packet[start]
    return ".".join(labels), start + 1
