"""Finds a peer's best setting on one workload, and whether its order is right, before anything counts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triton_rerank_bench.compare.catalogue import Peer, Setting
from triton_rerank_bench.compare.process import PeerError, PeerProcess
from triton_rerank_bench.compare.rounds import kendall_tau
from triton_rerank_bench.compare.workers import Workers
from triton_rerank_bench.workloads import Workload

TRIES = 3  # counted calls a setting
HOPELESS = 1.5  # a setting whose first call takes that many times the best so far is not tried further


@dataclass(frozen=True)
class Tried:
    """One setting: median seconds of the tries, and Kendall's tau of its order to the reference's."""

    setting: Setting
    seconds: float
    kendall_tau: float


@dataclass(frozen=True)
class Found:
    """What a search found of a peer: the worker's notes, and the settings that were tried, the default first."""

    peer: Peer
    notes: dict[str, str]
    tried: list[Tried]

    @property
    def default(self) -> Tried:
        """The peer as it comes."""
        return self.tried[0]

    @property
    def best(self) -> Tried:
        """The fastest whose order is right; the default if none is."""
        right = [tried for tried in self.tried if tried.kendall_tau >= self.peer.least_tau]
        return min(right, key=lambda tried: tried.seconds, default=self.default)


def search(
    peer: Peer,
    settings: Sequence[Setting],
    workload: Workload,
    reference: Sequence[float],
    workers: Workers,
    *,
    on_step: Callable[[str], None],
    clock: Callable[[], float],
) -> Found:
    """Try settings, the default first, and keep the workers of the default and the best only.

    Raises:
        PeerError: it cannot be loaded, or fails at its default setting.
    """
    tried: list[Tried] = []
    notes: dict[str, str] = {}
    for setting in settings:
        on_step(f"{workload.name}: {peer.name}, {setting.text}")
        try:
            process, notes = workers.get(peer, setting)
            fastest = min((each.seconds for each in tried), default=float("inf"))
            seconds, scores = _try(process, setting, workload, hopeless_s=HOPELESS * fastest, clock=clock)
        except PeerError:
            workers.drop(peer, setting)
            if not tried:
                raise
            continue  # a setting that does not work is not the best
        tried.append(Tried(setting, seconds, kendall_tau(reference, scores) if len(scores) > 1 else 1.0))
    found = Found(peer, notes, tried)
    workers.keep(peer, [found.default.setting, found.best.setting])
    return found


def _try(
    process: PeerProcess, setting: Setting, workload: Workload, *, hopeless_s: float, clock: Callable[[], float]
) -> tuple[float, list[float]]:
    """Median seconds, and scores."""

    def call() -> tuple[float, list[float]]:
        """Score the workload once: seconds, and scores."""
        start = clock()
        scores = process.scores(workload.query, workload.documents, setting.options)
        return clock() - start, scores

    call()  # the first call with new shapes builds kernels
    seconds, scores = call()
    if seconds > hopeless_s:
        return seconds, scores
    return statistics.median([seconds, *(call()[0] for _ in range(TRIES - 1))]), scores


def contestant_name(peer: Peer, setting: Setting) -> str:
    """As the rounds and the report call it."""
    return f"{peer.name}, {setting.text}"


class PeerContestant:
    """A peer at one setting, in the rounds; the process has loaded it."""

    def __init__(self, peer: Peer, setting: Setting, process: PeerProcess) -> None:
        self.name = contestant_name(peer, setting)
        self._options: dict[str, Any] = dict(setting.options)
        self._process = process

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Logits, or what the library gives that has their order."""
        return self._process.scores(query, documents, self._options)
