"""One workload of ours and the peers: finds each peer's best setting, then times all in the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from triton_rerank_bench.compare.catalogue import Peer
from triton_rerank_bench.compare.contestants import IN_PROCESS, SERVED, Contestant
from triton_rerank_bench.compare.process import PeerError
from triton_rerank_bench.compare.rounds import (
    PAUSE_S,
    WARM_UP_ROUNDS,
    Ratio,
    Rounds,
    Timing,
    kendall_tau,
    run_rounds,
    summarise,
)
from triton_rerank_bench.compare.search import Found, PeerContestant, Tried, contestant_name, search
from triton_rerank_bench.compare.workers import Workers
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.progress import OnStep
from triton_rerank_bench.workloads import TokenStatistics, Workload

QUICK_SETTINGS = 2  # of each peer: the default and the likeliest other
IDLE_S = 2.0


@dataclass(frozen=True)
class AtSetting:
    """A peer at one setting; the ratio is its seconds over ours served, None if its order is wrong."""

    setting: str
    kendall_tau: float
    timing: Timing
    ratio: Ratio | None


@dataclass(frozen=True)
class PeerFigures:
    """A peer on one workload: as it comes, and at its fastest setting of those tried whose order is right.

    Its order is held to the bound of its precision; notes are such as the precision that it computes in.
    """

    peer: str
    precision: str
    least_tau: float
    notes: dict[str, str] = field(default_factory=dict)
    default: AtSetting | None = None
    best: AtSetting | None = None
    tried: dict[str, float] = field(default_factory=dict)
    not_measured: str | None = None


@dataclass(frozen=True)
class WorkloadPeers:
    """One workload; ours are served and, where it was timed, in process; the idle share is of all waiting workers."""

    workload: str
    tokens: TokenStatistics
    n_rounds: int
    ours: list[Timing]
    served_over_in_process: float | None
    our_kendall_tau: float
    peers: list[PeerFigures]
    idle_share: float


class Recorded:
    """Notes the seconds of a contestant's turns, so that an interrupted run keeps them; a peer that fails stays out."""

    def __init__(self, contestant: Contestant, clock: Callable[[], float]) -> None:
        self.name = contestant.name
        self.seconds: list[float] = []
        self.last: list[float] = []
        self.failure: str | None = None
        self._contestant, self._clock = contestant, clock

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """The contestant's scores; after a failure the last ones."""
        if self.failure is None:
            start = self._clock()
            try:
                self.last = self._contestant.scores(query, documents)
            except PeerError as exc:
                self.failure = str(exc)
            self.seconds.append(self._clock() - start)
        return self.last


class Race:
    """One workload of a run: peers beside ours, their order held against the reference, torch fp32's scores.

    ``quick`` tries fewer settings. ``interrupted`` says whether the user ended it.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        text: Workload,
        tokens: TokenStatistics,
        reference: Sequence[float],
        workers: Workers,
        *,
        n_rounds: int,
        seed: int,
        on_step: OnStep,
        quick: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._peers, self._text, self._tokens, self._reference = peers, text, tokens, reference
        self._n_rounds, self._seed, self._quick = n_rounds, seed, quick
        self._workers, self._on_step, self._clock = workers, on_step, clock
        self._left_out: dict[str, str] = {}
        self.interrupted = False

    def run(self, ours: Sequence[Contestant], load: OtherLoad) -> list[WorkloadPeers]:
        """Search, then time; ``load`` is entered for each turn.

        Returns:
            The figures; nothing if it was interrupted before the first counted round was complete.
        """
        found = [each for peer in self._peers if (each := self._search(peer))]
        self._on_step("are they quiet while they wait?", None)
        idle_share = self._workers.idle_share(IDLE_S)
        recorded = [Recorded(contestant, self._clock) for contestant in (*ours, *self._contestants(found))]
        try:
            self._time(recorded, found, load)
        except KeyboardInterrupt:
            self.interrupted = True
        n_rounds = min(len(each.seconds) for each in recorded if each.failure is None) - WARM_UP_ROUNDS
        return [self._figures(found, recorded, n_rounds, idle_share)] if n_rounds > 0 else []

    def _search(self, peer: Peer) -> Found | None:
        settings = peer.settings[:QUICK_SETTINGS] if self._quick else peer.settings

        def on_step(doing: str) -> None:
            """Tell what is tried; how long the search will last nobody knows."""
            self._on_step(doing, None)

        try:
            return search(
                peer, settings, self._text, self._reference, self._workers, on_step=on_step, clock=self._clock
            )
        except PeerError as exc:
            self._left_out[peer.name] = str(exc)
            return None

    def _contestants(self, found: Sequence[Found]) -> list[PeerContestant]:
        pairs = ((each.peer, tried.setting) for each in found for tried in _at_settings(each))
        return [PeerContestant(peer, setting, self._workers.get(peer, setting)[0]) for peer, setting in pairs]

    def _time(self, recorded: Sequence[Recorded], found: Sequence[Found], load: OtherLoad) -> None:
        expected = {contestant_name(e.peer, t.setting): t.seconds + PAUSE_S for e in found for t in _at_settings(e)}
        usual = min(expected.values(), default=1.0)  # ours are not known yet
        left_s = (self._n_rounds + WARM_UP_ROUNDS) * sum(expected.get(each.name, usual) for each in recorded)

        def on_call(name: str) -> None:
            """Tell whose turn it is and the seconds that are left, then take this turn's off."""
            nonlocal left_s
            self._on_step(f"{self._text.name}: {name}", left_s)
            left_s -= expected.get(name, usual)

        run_rounds(recorded, [self._text], n_rounds=self._n_rounds, seed=self._seed, on_call=on_call, during=load)

    def _figures(
        self, found: Sequence[Found], recorded: Sequence[Recorded], n_rounds: int, idle_share: float
    ) -> WorkloadPeers:
        for each in recorded:
            if each.failure is not None:
                self._left_out[_peer_of(each.name, found)] = each.failure
        kept = {each.peer.name: each for each in found if each.peer.name not in self._left_out}
        names = {
            SERVED,
            IN_PROCESS,
            *(contestant_name(e.peer, t.setting) for e in kept.values() for t in _at_settings(e)),
        }
        timed = [each for each in recorded if each.name in names]
        last = WARM_UP_ROUNDS + n_rounds
        rounds = Rounds(
            seconds={self._text.name: {each.name: each.seconds[WARM_UP_ROUNDS:last] for each in timed}},
            scores={self._text.name: {each.name: each.last for each in timed}},
        )
        speed = summarise(self._text, rounds, self._tokens, ratios=[(each.name, SERVED) for each in timed])
        timings = {timing.contestant: timing for timing in speed.timings}
        ratios = {ratio.numerator: ratio for ratio in speed.ratios}

        def at_setting(peer: Peer, tried: Tried) -> AtSetting:
            """Figures of one setting; its ratio to the served model only where its order is right."""
            name = contestant_name(peer, tried.setting)
            right = tried.kendall_tau >= peer.least_tau
            return AtSetting(tried.setting.text, tried.kendall_tau, timings[name], ratios[name] if right else None)

        return WorkloadPeers(
            workload=self._text.name,
            tokens=self._tokens,
            n_rounds=n_rounds,
            ours=[timings[name] for name in (SERVED, IN_PROCESS) if name in timings],
            served_over_in_process=1 / ratios[IN_PROCESS].median if IN_PROCESS in ratios else None,
            our_kendall_tau=kendall_tau(self._reference, rounds.scores[self._text.name][SERVED]),
            peers=[self._peer(peer, kept.get(peer.name), at_setting) for peer in self._peers],
            idle_share=idle_share,
        )

    def _peer(self, peer: Peer, found: Found | None, at_setting: Callable[[Peer, Tried], AtSetting]) -> PeerFigures:
        if found is None:
            return PeerFigures(peer.name, peer.precision, peer.least_tau, not_measured=self._left_out[peer.name])
        default, best = at_setting(peer, found.default), at_setting(peer, found.best)
        if default.ratio and default.timing.median_s < best.timing.median_s:
            best = default  # the search was too short to tell them apart, and the rounds count
        tried = {each.setting.text: each.seconds for each in found.tried}
        return PeerFigures(peer.name, peer.precision, peer.least_tau, found.notes, default, best, tried)


def _at_settings(found: Found) -> list[Tried]:
    """The default and the best, once if they are the same."""
    return [found.default] if found.best is found.default else [found.default, found.best]


def _peer_of(name: str, found: Sequence[Found]) -> str:
    for each in found:
        if any(contestant_name(each.peer, tried.setting) == name for tried in _at_settings(each)):
            return each.peer.name
    raise BenchError(f"{name} failed")  # ours has errors of its own, which nobody catches
