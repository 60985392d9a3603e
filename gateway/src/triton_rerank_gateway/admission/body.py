"""Reads a request's body within its bounds of size and time, and decodes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from triton_rerank_gateway.failures import GatewayError

Take = Callable[[int], None]


class Room:
    """What all bodies together may take: callers who send much at once must not use up the memory.

    Args:
        most_bytes: bound; a body is counted as long as its request is under way.
    """

    def __init__(self, most_bytes: int) -> None:
        self.used_bytes = 0
        self._most_bytes = most_bytes

    @contextmanager
    def taken(self) -> Iterator[Take]:
        """Gives a function to call with the size of each part that came; what it counted is free at the end.

        The function raises GatewayError where there is no room for the part.
        """
        mine = 0

        def take(n_bytes: int) -> None:
            """Hold so many bytes more; GatewayError where there is no room."""
            nonlocal mine
            if self.used_bytes + n_bytes > self._most_bytes:
                held = f"requests under way hold {self.used_bytes} bytes of at most {self._most_bytes}"
                raise GatewayError("overloaded", f"{held}; send this one again later")
            self.used_bytes += n_bytes
            mine += n_bytes

        try:
            yield take
        finally:
            self.used_bytes -= mine


async def read_body(
    chunks: AsyncIterator[bytes], headers: Mapping[str, str], *, most_bytes: int, timeout_s: float, take: Take
) -> bytes:
    """The whole body.

    Args:
        chunks: as they come; nothing is read of a body that says that it is too large.
        headers: of the request, names in lower case.
        most_bytes: bound.
        timeout_s: seconds until it must all be there.
        take: of `Room.taken`.

    Raises:
        GatewayError: too large, too slow, not JSON by its headers, or too much beside what others sent.
    """
    _check_headers(headers)
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most_bytes:
        raise _too_large(most_bytes)
    try:
        return await asyncio.wait_for(_collected(chunks, most_bytes, take), timeout_s)
    except (asyncio.TimeoutError, TimeoutError) as exc:
        raise GatewayError("slow_body", f"the body was not there after {timeout_s:g} s; send it faster") from exc


def decode(body: bytes) -> Any:
    """Decode JSON, strictly: no NaN, no lone surrogates, UTF-8 only.

    Raises:
        GatewayError: it is none.
    """
    if not body:
        raise GatewayError("invalid", "the body is empty: it must be a JSON object")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise GatewayError("invalid", f"the body is no JSON: {exc.msg} at character {exc.pos}") from exc


async def _collected(chunks: AsyncIterator[bytes], most_bytes: int, take: Take) -> bytes:
    parts, size = [], 0
    async for chunk in chunks:
        take(len(chunk))
        parts.append(chunk)
        size += len(chunk)
        if size > most_bytes:
            raise _too_large(most_bytes)
    return b"".join(parts)


def _check_headers(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise GatewayError("media_type", f"the body has the encoding {encoding!r:.40}: send it without")
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise GatewayError("media_type", f"the body has the type {kind!r:.80}: it must be application/json")


def _too_large(most_bytes: int) -> GatewayError:
    return GatewayError("too_large", f"the body is larger than {most_bytes} bytes; send fewer or shorter documents")
