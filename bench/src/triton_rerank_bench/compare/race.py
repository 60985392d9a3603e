"""Who is timed takes turns: each peer's best setting is looked for, then all are timed in the same rounds."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

from scipy.stats import kendalltau

from triton_rerank_bench.compare.catalogue import Arguments, Peer, Setting
from triton_rerank_bench.compare.contestants import IN_PROCESS, SERVED, Contestant
from triton_rerank_bench.compare.process import PeerContestant, Workers
from triton_rerank_bench.errors import PeerError
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.progress import OnStep
from triton_rerank_bench.workloads import TokenStatistics, Workload

WARM_UP_ROUNDS = 2
# Thread pools spin for a moment after a call, and would take cores from the next contestant's first milliseconds.
PAUSE_S = 0.1
TRIES = 3  # counted calls a setting in the search
HOPELESS = 1.5  # a setting whose first call takes that many times the best so far is not tried further
IDLE_S = 2.0


@dataclass
class Rounds:
    """What was measured: workload -> contestant -> seconds a call, one a round; and the scores of its last call.

    ``failed`` holds peers that gave up in their turn, and why; they have no more turns.
    """

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def complete(self, workload: str) -> int:
        """Leave out who failed, and the round that was interrupted; how many rounds are left."""
        kept = {name: seconds for name, seconds in self.seconds.get(workload, {}).items() if name not in self.failed}
        n_rounds = min(map(len, kept.values()), default=0)
        self.seconds[workload] = {name: seconds[:n_rounds] for name, seconds in kept.items()}
        return n_rounds


@dataclass(frozen=True)
class Ratio:
    """Seconds of one contestant over those of another, paired within each round."""

    numerator: str
    denominator: str
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Timing:
    """One contestant on one workload, over the counted rounds."""

    contestant: str
    median_s: float
    min_s: float
    max_s: float
    pairs_per_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Row:
    """Ours, or a peer at one setting: as it comes, or at its fastest of those tried whose order is right.

    Attributes:
        name: of the peer; of ours, served or in process.
        kind: whose row, or which setting.
        setting: of the peer, in words.
        kendall_tau: of its order to the reference's, torch fp32; None where it was not held against that.
        timing: over the counted rounds.
        ratio: its seconds over ours served; None if its order is wrong.
        precision: of the peer, to whose bound, ``least_tau``, its order is held.
        notes: such as the precision that it computes in.
    """

    name: str
    kind: Literal["ours", "default", "best"]
    setting: str
    kendall_tau: float | None
    timing: Timing
    ratio: Ratio | None
    precision: str = ""
    least_tau: float = -1.0
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One workload.

    Attributes:
        rows: ours, then the peers', two of each.
        served_over_in_process: of their seconds; ``added_ms`` is the difference. None where only one was timed.
        tried: peer -> setting -> seconds in the search.
        not_measured: peer -> why.
        idle_share: of one core that all waiting workers use together.
    """

    workload: str
    tokens: TokenStatistics
    n_rounds: int
    rows: list[Row]
    served_over_in_process: Ratio | None = None
    added_ms: float | None = None
    tried: dict[str, dict[str, float]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    idle_share: float = 0.0

    def of(self, kind: str) -> list[Row]:
        """The rows of a kind."""
        return [row for row in self.rows if row.kind == kind]


@dataclass(frozen=True)
class Tried:
    """One setting in the search: median seconds of the tries, and Kendall's tau of its order to the reference's."""

    contestant: PeerContestant
    seconds: float
    kendall_tau: float


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
    ) -> Outcome | None:
        """Search, then time; orders are held against the reference, torch fp32's scores.

        Gives None if it was interrupted before the first counted round was complete.
        """
        found: list[tuple[Peer, list[Tried]]] = []
        left_out: dict[str, str] = {}
        for peer in self.peers:
            settings = peer.settings[: self.n_settings]
            try:
                found.append((peer, search(peer, settings, text, reference, self.workers, self.on_step, self.clock)))
            except PeerError as exc:
                left_out[peer.name] = str(exc)
        self.on_step("are they quiet while they wait?")
        idle_share, rounds = self.workers.idle_share(IDLE_S), Rounds()
        theirs = {at.contestant.name: at.contestant for peer, tried in found for at in (tried[0], best_of(peer, tried))}
        try:
            run_rounds(
                [*ours, *theirs.values()], [text], n_rounds=self.n_rounds, seed=self.seed, during=self.load,
                on_call=self.on_step, clock=self.clock, rounds=rounds,
            )  # fmt: skip
        except KeyboardInterrupt:
            self.interrupted = True
        n_rounds = rounds.complete(text.name)
        if not n_rounds:
            return None
        seconds, scores = rounds.seconds[text.name], rounds.scores[text.name]
        rows = []
        for name in (each.name for each in ours):
            tau, over = kendall_tau(reference, scores[name]), ratio(name, SERVED, seconds)
            rows.append(Row(name, "ours", "", tau, timing(name, seconds[name], tokens), over))
        for peer, tried in found:
            names = (at.contestant.name for at in (tried[0], best_of(peer, tried)))
            if failed := next((rounds.failed[name] for name in names if name in rounds.failed), None):
                left_out[peer.name] = failed
            else:
                rows += _rows(peer, tried, seconds, tokens)
        both = (SERVED, IN_PROCESS, seconds) if IN_PROCESS in seconds else None
        return Outcome(
            text.name, tokens, n_rounds, rows,
            served_over_in_process=ratio(*both) if both else None,
            added_ms=added_ms(*both) if both else None,
            tried={peer.name: {at.contestant.setting: at.seconds for at in tried} for peer, tried in found},
            not_measured=left_out,
            idle_share=idle_share,
        )  # fmt: skip


def best_of(peer: Peer, tried: Sequence[Tried]) -> Tried:
    """The fastest whose order is right; the default, which is the first, if none is."""
    right = [each for each in tried if each.kendall_tau >= peer.least_tau]
    return min(right, key=lambda each: each.seconds, default=tried[0])


def _rows(
    peer: Peer, tried: Sequence[Tried], seconds: Mapping[str, Sequence[float]], tokens: TokenStatistics
) -> list[Row]:
    """A peer at its default setting and at its best; the ratio to the served model only where its order is right."""

    def row(kind: Literal["default", "best"], at: Tried) -> Row:
        """Figures of one setting."""
        name, right = at.contestant.name, at.kendall_tau >= peer.least_tau
        over, timed = ratio(name, SERVED, seconds) if right else None, timing(name, seconds[name], tokens)
        of_peer = (peer.precision, peer.least_tau, at.contestant.process.notes)
        return Row(peer.name, kind, at.contestant.setting, at.kendall_tau, timed, over, *of_peer)

    default, best = row("default", tried[0]), row("best", best_of(peer, tried))
    if default.ratio and default.timing.median_s < best.timing.median_s:
        best = replace(default, kind="best")  # the search was too short to tell them apart, and the rounds count
    return [default, best]


def run_rounds(
    contestants: Sequence[Contestant],
    workloads: Sequence[Workload],
    *,
    n_rounds: int,
    seed: int,
    during: AbstractContextManager[object],
    clock: Callable[[], float] = time.perf_counter,
    pause_s: float = PAUSE_S,
    on_call: OnStep = lambda *_: None,
    rounds: Rounds | None = None,
) -> Rounds:
    """Time all contestants on all workloads, in a new seeded order each round, after `WARM_UP_ROUNDS` uncounted ones.

    ``on_call`` is told who is next before each turn, and what seconds are left from the second round on; ``during`` is
    entered for each, outside its clock. Who wants to keep what was measured before an interruption brings the
    ``rounds`` that are filled.
    """
    rounds = rounds or Rounds()
    for workload in workloads:
        rounds.seconds[workload.name] = {contestant.name: [] for contestant in contestants}
        rounds.scores[workload.name] = {}
    shuffler, start_s = random.Random(seed), time.monotonic()  # noqa: S311 - an order, no secret
    for number in range(WARM_UP_ROUNDS + n_rounds):
        left_s = (time.monotonic() - start_s) * (WARM_UP_ROUNDS + n_rounds - number) / number if number else None
        for workload in workloads:
            for contestant in shuffler.sample(contestants, len(contestants)):
                if contestant.name in rounds.failed:
                    continue
                on_call(f"{workload.name}: {contestant.name}", left_s)
                left_s = None
                time.sleep(pause_s)
                try:
                    with during:
                        seconds, scores = _turn(contestant, workload, clock)
                except PeerError as exc:
                    rounds.failed[contestant.name] = str(exc)
                    continue
                rounds.scores[workload.name][contestant.name] = scores
                if number >= WARM_UP_ROUNDS:
                    rounds.seconds[workload.name][contestant.name].append(seconds)
    return rounds


def _turn(contestant: Contestant, workload: Workload, clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Seconds a call, and the last call's scores."""
    scores: list[float] = []
    start = clock()
    for _ in range(workload.calls):
        scores = contestant.scores(workload.query, workload.documents)
    return (clock() - start) / workload.calls, scores


def timing(contestant: str, seconds: Sequence[float], tokens: TokenStatistics) -> Timing:
    """Median, least and most of the seconds, one a round."""
    median = statistics.median(seconds)
    return Timing(contestant, median, min(seconds), max(seconds), tokens.pairs / median, tokens.total / median)


def ratio(numerator: str, denominator: str, seconds: Mapping[str, Sequence[float]]) -> Ratio:
    """One contestant's seconds over another's, round by round."""
    ratios = [top / bottom for top, bottom in zip(seconds[numerator], seconds[denominator], strict=True)]
    return Ratio(numerator, denominator, statistics.median(ratios), min(ratios), max(ratios))


def added_ms(more: str, less: str, seconds: Mapping[str, Sequence[float]]) -> float:
    """Median of one contestant's seconds less another's, paired within rounds, in milliseconds."""
    return statistics.median(1e3 * (a - b) for a, b in zip(seconds[more], seconds[less], strict=True))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two score lists: 1 the same order (as of one score), -1 the reverse, 0 if one is constant."""
    if len(first) == len(second) == 1:
        return 1.0
    tau = float(kendalltau(first, second).statistic)
    return 0.0 if math.isnan(tau) else tau


def search(
    peer: Peer,
    settings: Sequence[Setting],
    text: Workload,
    reference: Sequence[float],
    workers: Workers,
    on_step: OnStep,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Tried]:
    """Try settings, the default first; only its worker and the best one's live on. Raises PeerError where it fails."""
    tried: list[Tried] = []
    once = replace(text, calls=1)
    for setting in settings:
        on_step(f"{text.name}: {peer.name}, {setting.text}")
        hopeless_s = HOPELESS * min((each.seconds for each in tried), default=math.inf)
        try:
            contestant = workers.get(peer, setting)
            # the first call with new shapes builds kernels, and does not count
            seconds, scores = [_turn(contestant, once, clock) for _ in range(2)][-1]
            more = range(TRIES - 1) if seconds <= hopeless_s else ()
            seconds = statistics.median([seconds, *(_turn(contestant, once, clock)[0] for _ in more)])
        except PeerError:
            workers.drop(peer, setting)
            if not tried:
                raise
            continue  # a setting that does not work is not the best
        tried.append(Tried(contestant, seconds, kendall_tau(reference, scores)))
    workers.keep(peer, [tried[0].contestant, best_of(peer, tried).contestant])
    return tried


def reference_scores(
    peer: Peer, load: Arguments, texts: Sequence[Workload], workers: Workers, on_step: OnStep
) -> dict[str, list[float]]:
    """Workload -> the peer's scores when loaded so, at its default setting, by a worker that is gone again.

    Raises:
        PeerError: it cannot be loaded, or fails.
    """
    setting, other = peer.settings[0], replace(peer, name="reference", load={**peer.load, **load})
    on_step("sentence-transformers fp32, for reference")
    contestant = workers.get(other, setting)
    scores = {text.name: contestant.scores(text.query, text.documents) for text in texts}
    workers.drop(other, setting)
    return scores
