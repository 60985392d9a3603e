"""POSTs over connections that stay open, with next to no time of its own: a full HTTP client costs what is measured."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MOST_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: status, headers as they were sent, in lower case, and the body."""

    status: int
    head: bytes
    body: bytes


class HttpCalls:
    """Calls to one server, in one event loop; as many connections as there are calls at a time.

    Args:
        port: on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, content: bytes) -> Reply:
        """Send a body of JSON.

        Raises:
            OSError: no connection, or it was closed before the answer.
            asyncio.IncompleteReadError: it was closed within the answer.
        """
        reader, writer = self._idle.pop() if self._idle else await self._connect()
        try:
            head = (
                f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
            )
            writer.write(head.encode() + b"\r\n\r\n" + content)
            found = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = _LENGTH.search(found)
            body = await reader.readexactly(int(length[1])) if length else b""
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        return Reply(int(found[9:12]), found, body)

    def close(self) -> None:
        """Close the connections that wait; later calls open new ones."""
        while self._idle:
            self._idle.pop()[1].close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port, limit=_MOST_HEAD_BYTES)
