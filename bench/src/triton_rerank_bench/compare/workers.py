"""The running workers: one for each way of loading a peer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from triton_rerank_bench.compare.catalogue import Peer, Setting
from triton_rerank_bench.compare.process import PeerProcess


class Workers:
    """Running workers, one for each way of loading a peer; a context manager that ends them.

    Args:
        python_of: peer -> the interpreter of its environment; may raise PeerError.
        folder_of: peer -> the model folder that it loads; may raise PeerError.
        max_length: tokens a pair.
        n_threads: that each computes with.
    """

    def __init__(
        self,
        python_of: Callable[[Peer], Path],
        folder_of: Callable[[Peer], Path],
        *,
        max_length: int,
        n_threads: int,
    ) -> None:
        self._python_of, self._folder_of = python_of, folder_of
        self._common = {"max_length": max_length, "n_threads": n_threads}
        self._running: dict[str, tuple[PeerProcess, dict[str, str]]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end(list(self._running))

    def get(self, peer: Peer, setting: Setting) -> tuple[PeerProcess, dict[str, str]]:
        """The worker that has loaded it, and its notes; raises PeerError where it cannot be loaded."""
        key = _key(peer, setting)
        if key not in self._running:
            python, folder = self._python_of(peer), self._folder_of(peer)
            process = PeerProcess(peer.name, python, n_threads=self._common["n_threads"])
            try:
                notes = process.load(peer.library, {"folder": str(folder), **self._common, **peer.load, **setting.load})
            except BaseException:
                process.close()
                raise
            self._running[key] = process, notes
        return self._running[key]

    def keep(self, peer: Peer, settings: Sequence[Setting]) -> None:
        """End the peer's workers that none of these settings needs."""
        keys = {_key(peer, setting) for setting in settings}
        self._end(key for key in list(self._running) if _of(peer, key) and key not in keys)

    def drop(self, peer: Peer, setting: Setting) -> None:
        """End the worker of a setting that failed."""
        self._end(key for key in list(self._running) if key == _key(peer, setting))

    def idle_share(self, seconds: float) -> float:
        """Share of one core that all of them use together while nobody asks them anything."""
        before = self._cpu_seconds()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / seconds

    def _end(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._running.pop(key)[0].close()

    def _cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process, _ in self._running.values())


def _key(peer: Peer, setting: Setting) -> str:
    """Equal where one worker will do."""
    return f"{peer.name}\n{json.dumps(dict(setting.load), sort_keys=True)}"


def _of(peer: Peer, key: str) -> bool:
    return key.startswith(f"{peer.name}\n")
