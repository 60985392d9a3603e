"""Measures ours and the peers in one run, workload by workload: finds each peer's best setting, then times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.repository import Artefacts
from triton_rerank_bench.contestants import (
    IN_PROCESS,
    PEER_BATCH_SIZE,
    SERVED,
    Contestant,
    InProcess,
    Served,
    load_cross_encoder,
    n_threads,
)
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.metrics import kendall_tau
from triton_rerank_bench.peers.catalogue import LEAST_TAU, Peer
from triton_rerank_bench.peers.figures import AtSetting, PeerFigures, PeersReport, WorkloadPeers, judge
from triton_rerank_bench.peers.model_folders import ModelFolders
from triton_rerank_bench.peers.process import PeerError
from triton_rerank_bench.peers.search import Found, PeerContestant, Tried, contestant_name, search
from triton_rerank_bench.peers.workers import Workers
from triton_rerank_bench.repository import read_model
from triton_rerank_bench.rounds import PAUSE_S, WARM_UP_ROUNDS, Rounds, run_rounds, summarise
from triton_rerank_bench.served import serve
from triton_rerank_bench.time_left import OnStep
from triton_rerank_bench.workloads import TokenStatistics, Workload, token_statistics

QUICK_SETTINGS = 2  # of each peer: the default and the likeliest other
IDLE_S = 2.0


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        model_repository: where Triton finds the served model.
        model: public model name; None means the only one there.
        checkpoint: PyTorch folder that it was exported from.
        environments: folder of the peers' environments.
        cache: for the peers' files.
        peers: which.
        texts: workloads.
        n_rounds: counted rounds.
        seed: of the turns.
        quick: try fewer settings.
    """

    model_repository: Path
    model: str | None
    checkpoint: Path
    environments: Path
    cache: Path
    peers: Sequence[Peer]
    texts: Sequence[Workload]
    n_rounds: int
    seed: int
    quick: bool


def measure_peers(plan: Plan, *, on_step: OnStep) -> PeersReport:
    """Time ours and the peers; an interruption keeps the rounds that were complete.

    Args:
        plan: what to measure.
        on_step: shown to the user.

    Raises:
        BenchError: the repository or the checkpoint is not there.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    files = read_model(plan.model_repository, plan.model)
    threads = n_threads(files)

    def tell(text: str) -> None:
        on_step(text, None)

    folders = ModelFolders(
        plan.checkpoint, plan.cache, plan.environments, max_length=files.info.max_length, on_step=tell
    )
    tell("torch fp32, for reference")
    references = _references(plan, files, threads)
    in_process, load = InProcess(files), OtherLoad()
    with (
        serve(plan.model_repository, files.info.name, on_progress=tell) as server,
        Workers(plan.environments, folders, max_length=files.info.max_length, n_threads=threads) as workers,
    ):
        report = PeersReport(
            files.info.name, files.info.precision, files.engine, files.info.max_length, threads, server.triton_version
        )
        ours: list[Contestant] = [Served(server.client), in_process]
        try:
            for text, reference in zip(plan.texts, references, strict=True):
                tokens = token_statistics(text, in_process.token_counts(text.query, text.documents))
                race = Race(plan, text, tokens, reference, workers, on_step)
                report.workloads += race.run(ours, load)
                report.interrupted |= race.interrupted
        except KeyboardInterrupt:  # while it searched: nothing of this workload counts
            report.interrupted = True
    report.other_load = load.share()
    report.targets = judge(report.workloads)
    return report


def _references(plan: Plan, files: Artefacts, threads: int) -> list[list[float]]:
    predict = load_cross_encoder(plan.checkpoint, max_length=files.info.max_length, n_threads=threads)
    return [predict([(text.query, document) for document in text.documents], PEER_BATCH_SIZE) for text in plan.texts]


class Recorded:
    """Notes the seconds of a contestant's turns, so that an interrupted run keeps them; a peer that fails stays out.

    Args:
        contestant: that is timed.
        clock: seconds.
    """

    def __init__(self, contestant: Contestant, clock: Callable[[], float]) -> None:
        self.name = contestant.name
        self.seconds: list[float] = []
        self.last: list[float] = []
        self.failure: str | None = None
        self._contestant, self._clock = contestant, clock

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Those of the contestant."""
        if self.failure is None:
            start = self._clock()
            try:
                self.last = self._contestant.scores(query, documents)
            except PeerError as exc:
                self.failure = str(exc)
            self.seconds.append(self._clock() - start)
        return self.last


class Race:
    """One workload of a run.

    Args:
        plan: of the run.
        text: the workload.
        tokens: of its pairs.
        reference: scores of torch fp32.
        workers: of the peers.
        on_step: shown to the user.
        clock: seconds.
    """

    def __init__(
        self,
        plan: Plan,
        text: Workload,
        tokens: TokenStatistics,
        reference: Sequence[float],
        workers: Workers,
        on_step: OnStep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._plan, self._text, self._tokens, self._reference = plan, text, tokens, reference
        self._workers, self._on_step, self._clock = workers, on_step, clock
        self._left_out: dict[str, str] = {}
        self.interrupted = False

    def run(self, ours: Sequence[Contestant], load: OtherLoad) -> list[WorkloadPeers]:
        """Search, then time.

        Args:
            ours: served and in process.
            load: entered for each turn.

        Returns:
            The figures; nothing if it was interrupted before the first counted round was complete.
        """
        found = [each for peer in self._plan.peers if (each := self._search(peer))]
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
        settings = peer.settings[:QUICK_SETTINGS] if self._plan.quick else peer.settings
        try:
            return search(
                peer,
                settings,
                self._text,
                self._reference,
                self._workers,
                on_step=lambda text: self._on_step(text, None),
                clock=self._clock,
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
        left_s = (self._plan.n_rounds + WARM_UP_ROUNDS) * sum(expected.get(each.name, usual) for each in recorded)

        def on_call(name: str) -> None:
            nonlocal left_s
            self._on_step(f"{self._text.name}: {name}", left_s)
            left_s -= expected.get(name, usual)

        plan = self._plan
        run_rounds(recorded, [self._text], n_rounds=plan.n_rounds, seed=plan.seed, on_call=on_call, during=load)

    def _figures(
        self, found: Sequence[Found], recorded: Sequence[Recorded], n_rounds: int, idle_share: float
    ) -> WorkloadPeers:
        for each in recorded:
            if each.failure is not None:
                self._left_out[_peer_of(each.name, found)] = each.failure
        kept = [each for each in found if each.peer.name not in self._left_out]
        names = {SERVED, IN_PROCESS, *(contestant_name(e.peer, t.setting) for e in kept for t in _at_settings(e))}
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
            name = contestant_name(peer, tried.setting)
            right = tried.kendall_tau >= LEAST_TAU[peer.precision]
            return AtSetting(tried.setting.text, tried.kendall_tau, timings[name], ratios[name] if right else None)

        by_peer = {each.peer.name: each for each in kept}
        return WorkloadPeers(
            workload=self._text.name,
            tokens=self._tokens,
            n_rounds=n_rounds,
            ours=[timings[SERVED], timings[IN_PROCESS]],
            served_over_in_process=1 / ratios[IN_PROCESS].median,
            our_kendall_tau=kendall_tau(self._reference, rounds.scores[self._text.name][SERVED]),
            peers=[self._peer(peer, by_peer.get(peer.name), at_setting) for peer in self._plan.peers],
            idle_share=idle_share,
        )

    def _peer(self, peer: Peer, found: Found | None, at_setting: Callable[[Peer, Tried], AtSetting]) -> PeerFigures:
        bound = LEAST_TAU[peer.precision]
        if found is None:
            return PeerFigures(peer.name, peer.precision, bound, not_measured=self._left_out[peer.name])
        default, best = at_setting(peer, found.default), at_setting(peer, found.best)
        if default.ratio and default.timing.median_s < best.timing.median_s:
            best = default  # the search was too short to tell them apart, and the rounds count
        tried = {each.setting.text: each.seconds for each in found.tried}
        return PeerFigures(peer.name, peer.precision, bound, found.notes, default, best, tried)


def _at_settings(found: Found) -> list[Tried]:
    """The default and the best, once if they are the same."""
    return [found.default] if found.best is found.default else [found.default, found.best]


def _peer_of(name: str, found: Sequence[Found]) -> str:
    for each in found:
        if any(contestant_name(each.peer, tried.setting) == name for tried in _at_settings(each)):
            return each.peer.name
    raise BenchError(f"{name} failed")  # ours has errors of its own, which nobody catches
