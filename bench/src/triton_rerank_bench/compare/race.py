"""One workload of ours and the peers: finds each peer's best setting, then times all in the same rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from triton_rerank_bench.compare.catalogue import Arguments, Peer, Setting
from triton_rerank_bench.compare.contestants import IN_PROCESS, SERVED, Contestant
from triton_rerank_bench.compare.process import PeerProcess, Workers
from triton_rerank_bench.compare.rounds import (
    PAUSE_S,
    WARM_UP_ROUNDS,
    Ratio,
    Rounds,
    Timing,
    added_ms,
    kendall_tau,
    ratio,
    run_rounds,
    timing,
)
from triton_rerank_bench.errors import PeerError
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.progress import OnStep
from triton_rerank_bench.workloads import TokenStatistics, Workload

TRIES = 3  # counted calls a setting in the search
HOPELESS = 1.5  # a setting whose first call takes that many times the best so far is not tried further
IDLE_S = 2.0


@dataclass(frozen=True)
class Tried:
    """One setting in the search: median seconds of the tries, and Kendall's tau of its order to the reference's."""

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
    """One workload; ours are served and, where it was timed, in process; the idle share is of all waiting workers.

    Served over in process is the ratio of their seconds, and their difference in milliseconds.
    """

    workload: str
    tokens: TokenStatistics
    n_rounds: int
    ours: list[Timing]
    served_over_in_process: Ratio | None
    added_ms: float | None
    our_kendall_tau: float
    peers: list[PeerFigures]
    idle_share: float


class PeerContestant:
    """A peer at one setting, in the rounds; the process has loaded it."""

    def __init__(self, peer: Peer, setting: Setting, process: PeerProcess) -> None:
        self.name = f"{peer.name}, {setting.text}"
        self._options, self._process = setting.options, process

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Logits, or what the library gives that has their order."""
        return self._process.scores(query, documents, self._options)


@dataclass
class Race:
    """Peers beside ours, workload by workload; ``interrupted`` says whether the user ended it.

    At most ``n_settings`` of a peer are tried, the default among them. ``load`` is entered for each turn.
    """

    peers: Sequence[Peer]
    workers: Workers
    n_rounds: int
    seed: int
    on_step: OnStep
    load: OtherLoad = field(default_factory=OtherLoad)
    n_settings: int | None = None
    clock: Callable[[], float] = time.perf_counter
    interrupted: bool = False

    def run(
        self, ours: Sequence[Contestant], text: Workload, tokens: TokenStatistics, reference: Sequence[float]
    ) -> WorkloadPeers | None:
        """Search, then time; orders are held against the reference, torch fp32's scores.

        Returns:
            The figures; None if it was interrupted before the first counted round was complete.
        """
        found: dict[str, Found] = {}
        left_out: dict[str, str] = {}
        for peer in self.peers:
            try:
                settings = peer.settings[: self.n_settings]
                found[peer.name] = search(
                    peer, settings, text, reference, self.workers, on_step=self.on_step, clock=self.clock
                )
            except PeerError as exc:
                left_out[peer.name] = str(exc)
        self.on_step("are they quiet while they wait?")
        idle_share, rounds = self.workers.idle_share(IDLE_S), Rounds()
        theirs: dict[tuple[str, str], PeerContestant] = {}
        expected_s: dict[str, float] = {}
        for each in found.values():
            for tried in (each.default, each.best):
                process, _ = self.workers.get(each.peer, tried.setting)
                contestant = PeerContestant(each.peer, tried.setting, process)
                theirs[each.peer.name, tried.setting.text] = contestant
                expected_s[contestant.name] = tried.seconds + PAUSE_S
        try:
            self._time([*ours, *theirs.values()], text, expected_s, rounds)
        except KeyboardInterrupt:
            self.interrupted = True
        n_rounds = rounds.complete(text.name)
        if not n_rounds:
            return None
        left_out |= {name: rounds.failed[each.name] for (name, _), each in theirs.items() if each.name in rounds.failed}
        seconds = rounds.seconds[text.name]
        timings = {name: timing(name, of_rounds, tokens) for name, of_rounds in seconds.items()}

        def at(peer: Peer, tried: Tried) -> AtSetting:
            """Figures of one setting; its ratio to the served model only where its order is right."""
            name, right = theirs[peer.name, tried.setting.text].name, tried.kendall_tau >= peer.least_tau
            over = ratio(name, SERVED, seconds) if right else None
            return AtSetting(tried.setting.text, tried.kendall_tau, timings[name], over)

        both = IN_PROCESS in seconds
        return WorkloadPeers(
            workload=text.name,
            tokens=tokens,
            n_rounds=n_rounds,
            ours=[timings[each.name] for each in ours],
            served_over_in_process=ratio(SERVED, IN_PROCESS, seconds) if both else None,
            added_ms=added_ms(SERVED, IN_PROCESS, seconds) if both else None,
            our_kendall_tau=kendall_tau(reference, rounds.scores[text.name][SERVED]),
            peers=[_figures(peer, found, left_out, at) for peer in self.peers],
            idle_share=idle_share,
        )

    def _time(
        self, contestants: Sequence[Contestant], text: Workload, expected_s: Mapping[str, float], rounds: Rounds
    ) -> None:
        usual = min(expected_s.values(), default=1.0)  # ours are not known yet
        each_s = {contestant.name: text.calls * expected_s.get(contestant.name, usual) for contestant in contestants}
        left_s = (self.n_rounds + WARM_UP_ROUNDS) * sum(each_s.values())

        def on_call(name: str) -> None:
            """Tell whose turn it is and the seconds that are left, then take this turn's off."""
            nonlocal left_s
            self.on_step(f"{text.name}: {name}", left_s)
            left_s -= each_s[name]

        run_rounds(
            contestants, [text],
            n_rounds=self.n_rounds, seed=self.seed, on_call=on_call, during=self.load, clock=self.clock, rounds=rounds,
        )  # fmt: skip


def _figures(
    peer: Peer, found: Mapping[str, Found], left_out: Mapping[str, str], at: Callable[[Peer, Tried], AtSetting]
) -> PeerFigures:
    figures = PeerFigures(peer.name, peer.precision, peer.least_tau, not_measured=left_out.get(peer.name))
    if figures.not_measured is not None:
        return figures
    searched = found[peer.name]
    default, best = at(peer, searched.default), at(peer, searched.best)
    if default.ratio and default.timing.median_s < best.timing.median_s:
        best = default  # the search was too short to tell them apart, and the rounds count
    tried = {each.setting.text: each.seconds for each in searched.tried}
    return replace(figures, notes=searched.notes, default=default, best=best, tried=tried)


def search(
    peer: Peer,
    settings: Sequence[Setting],
    workload: Workload,
    reference: Sequence[float],
    workers: Workers,
    *,
    on_step: OnStep,
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
            hopeless_s = HOPELESS * min((each.seconds for each in tried), default=float("inf"))
            seconds, scores = _try(PeerContestant(peer, setting, process), workload, hopeless_s, clock)
        except PeerError:
            workers.drop(peer, setting)
            if not tried:
                raise
            continue  # a setting that does not work is not the best
        tried.append(Tried(setting, seconds, kendall_tau(reference, scores)))
    found = Found(peer, notes, tried)
    workers.keep(peer, [found.default.setting, found.best.setting])
    return found


def _try(
    contestant: PeerContestant, workload: Workload, hopeless_s: float, clock: Callable[[], float]
) -> tuple[float, list[float]]:
    """Median seconds, and scores; the first call with new shapes builds kernels, and does not count."""
    seconds: list[float] = []
    scores: list[float] = []
    for _ in range(1 + TRIES):
        start = clock()
        scores = contestant.scores(workload.query, workload.documents)
        seconds.append(clock() - start)
        if len(seconds) == 2 and seconds[1] > hopeless_s:
            break
    return statistics.median(seconds[1:]), scores


def reference_scores(
    peer: Peer, load: Arguments, texts: Sequence[Workload], workers: Workers, on_step: OnStep
) -> dict[str, list[float]]:
    """Workload -> the peer's scores when loaded so, at its default setting, by a worker that is gone again.

    Raises:
        PeerError: it cannot be loaded, or fails.
    """
    setting, other = peer.settings[0], replace(peer, name="reference", load={**peer.load, **load})
    on_step("sentence-transformers fp32, for reference")
    process, _ = workers.get(other, setting)
    scores = {text.name: process.scores(text.query, text.documents, setting.options) for text in texts}
    workers.drop(other, setting)
    return scores
