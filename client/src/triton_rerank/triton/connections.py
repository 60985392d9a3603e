"""The connections of a `TritonScorer`: one for threads, one for each event loop, made anew where its servers move."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import grpc.aio

from triton_rerank.core.scorer import Call
from triton_rerank.errors import ConfigurationError, RerankError
from triton_rerank.triton.channel import TritonOptions, open_channel
from triton_rerank.triton.targets import grpc_target, has_names, look_up, needs_lookup
from triton_rerank.triton.transport import AioTransport, SyncTransport, Translate, Transport

_LEAST_BETWEEN_S = 1.0  # calls that find nobody look names up no more often
_LOOK_S = 2.0  # of such a call's time


@dataclass(frozen=True, slots=True)
class _Opened:
    """A transport, and what the target stood for when it was made."""

    transport: SyncTransport | AioTransport
    places: str | None


class Connections:
    """Gives transports; safe to share between threads and event loops.

    Names are looked up again every ``lookup_s`` while calls are made, in a thread that no call waits for, and when a
    call found nobody. If a name then stands for other addresses, the next call gets a new transport. The old one is
    let go: calls under way hold it until they end.

    Args:
        target: as for `TritonScorer`.
        options: how channels are set up.
        translate: makes the error for an RPC that failed.
        name: what messages call the scorer.
    """

    def __init__(self, target: str, options: TritonOptions, translate: Translate, name: str) -> None:
        self._target = target
        self._options = options
        self._translate = translate
        self._name = name
        self._lock = threading.Lock()
        self._process: int | None = None  # the one that has the connections
        self._address: str | None = None  # as gRPC resolves it
        self._places: str | None = None  # addresses that names stood for, None before they were looked up
        self._looked_at = -float("inf")
        self._looking = False
        self._opened: dict[asyncio.AbstractEventLoop | None, _Opened] = {}  # None: of threads
        _made.add(self)

    @property
    def used(self) -> tuple[str, str] | None:
        """The target and its address as gRPC resolves it, while this process has connections."""
        if self._address is None or self._process != os.getpid() or not self._opened:
            return None
        return self._target, self._address.removeprefix("dns:///")

    @property
    def places(self) -> str | None:
        """What the target stands for, as far as it is known; compared only."""
        return self._places

    async def transport(self, call: Call) -> Transport:
        """The transport for a call.

        Raises:
            ConfigurationError: this process was forked from the one that has the connections.
            RerankError: a name of a list cannot be looked up, or not in time.
        """
        if self._process not in (None, os.getpid()):
            raise ConfigurationError(
                f"{self._name} has connections of process {self._process} and is used in its fork {os.getpid()}: gRPC "
                "does not survive a fork; make the client there (in gunicorn's post_fork, for example)"
            )
        if self._address is None:
            await self._find(call)
        self._process = os.getpid()
        self._look_again_if_due()
        with self._lock:
            return self._of(asyncio.get_running_loop() if call.runtime.is_async else None)

    async def moved(self, call: Call, *, since: str | None) -> bool:
        """Look names up now, where a call found nobody: True if they stand for something else than they did.

        Args:
            call: the call that would ask again.
            since: `places` before the call was made.
        """
        if not has_names(self._target):
            return False
        if self._places == since and time.monotonic() - self._looked_at >= _LEAST_BETWEEN_S:
            left_s = call.deadline.timeout_s - call.deadline.elapsed_s()
            try:
                await call.runtime.in_thread(self._look, timeout_s=max(0.0, min(left_s, _LOOK_S)))
            except TimeoutError:
                return False
        return since is not None and self._places != since

    def close(self) -> None:
        """Close the transport of threads; a forked process leaves it alone, since closing it there could hang."""
        if isinstance(transport := self._let_go(None), SyncTransport):
            transport.close()

    async def aclose(self) -> None:
        """Close the transports of threads and of this event loop."""
        self.close()
        if isinstance(transport := self._let_go(asyncio.get_running_loop()), AioTransport):
            await transport.close()

    def _let_go(self, loop: asyncio.AbstractEventLoop | None) -> Transport | None:
        with self._lock:
            opened = self._opened.pop(loop, None)
        return None if opened is None or self._process != os.getpid() else opened.transport

    def _of(self, loop: asyncio.AbstractEventLoop | None) -> Transport:
        opened = self._opened.get(loop)
        if opened is None or opened.places != self._places:
            for over in [known for known in self._opened if known is not None and known.is_closed()]:
                del self._opened[over]
            assert self._address is not None
            api, made_of = (grpc, SyncTransport) if loop is None else (grpc.aio, AioTransport)
            channel = open_channel(api, self._address, self._target, self._options)
            opened = self._opened[loop] = _Opened(made_of(channel, self._translate), self._places)
        return opened.transport

    async def _find(self, call: Call) -> None:
        """The address, at first: a list's names must be known, a single name is left to gRPC."""
        if not needs_lookup(self._target):
            self._address = grpc_target(self._target)
            return
        doing = f"the names in {self._target!r} were looked up"
        left_s = call.deadline.left_s(doing=doing)
        try:
            self._take(await call.runtime.in_thread(lambda: look_up(self._target), timeout_s=left_s))
        except TimeoutError as exc:
            raise call.deadline.passed(doing) from exc

    def _look_again_if_due(self) -> None:
        with self._lock:
            due = time.monotonic() - self._looked_at >= self._options.lookup_s
            if self._looking or not due or not has_names(self._target):
                return
            self._looking = True
        threading.Thread(target=self._look, name="triton-rerank-names", daemon=True).start()

    def _look(self) -> None:
        try:
            self._take(look_up(self._target))
        except RerankError:  # names that cannot be looked up now stand for what they stood for
            with self._lock:
                self._looked_at = time.monotonic()
        finally:
            self._looking = False

    def _take(self, found: str) -> None:
        with self._lock:
            self._looked_at = time.monotonic()
            if self._places is None and self._address is not None:  # a single name: gRPC looked it up just so
                self._opened = {loop: _Opened(made.transport, found) for loop, made in self._opened.items()}
            self._places = found
            self._address = found if "," in self._target else grpc_target(self._target)


_made: weakref.WeakSet[Connections] = weakref.WeakSet()


def in_use() -> Iterator[tuple[str, str]]:
    """Target and address of all connections that this process has."""
    while True:
        with contextlib.suppress(RuntimeError):  # one was made meanwhile; a lock would not survive a fork
            return (used for made in list(_made) if (used := made.used) is not None)
