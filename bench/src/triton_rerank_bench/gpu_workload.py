"""Measures the workloads of one served model beside sentence-transformers on the same device."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triton_rerank.repository import Artefacts
from triton_rerank_bench import gpu_peer, workloads
from triton_rerank_bench.contestants import PEER_BATCH_SIZE, SERVED, Contestant, Peer, Served
from triton_rerank_bench.gpu_device import Device
from triton_rerank_bench.gpu_figures import REFERENCE, Capacity, WorkloadFigures, capacity
from triton_rerank_bench.gpu_models import Prepared
from triton_rerank_bench.gpu_peer import BEST, DEFAULT, DevicePeer, Pairs, Type, best_rate, fastest
from triton_rerank_bench.load import Load, LoadFigures
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.metrics import kendall_tau
from triton_rerank_bench.rounds import Agreement, WorkloadSpeed, run_rounds, summarise
from triton_rerank_bench.served import ServedModel
from triton_rerank_bench.workloads import Workload, token_statistics
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

CAPACITY_ROUNDS = 3
WARM_UP_SHARE = 0.4  # of a level's seconds go before it

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured of each model.

    Attributes:
        device: on which.
        device_id: GPU, as nvidia-smi counts.
        workloads: names of `workloads.BY_NAME`.
        n_rounds: counted rounds of single lists.
        level_s: seconds of each level of load.
        concurrencies: callers at each level.
        attention: what the peer asks transformers for.
        batch_sizes: of the peer, ascending; its default is timed besides.
        seed: of texts and turns.
    """

    device: Device
    device_id: int
    workloads: tuple[str, ...]
    n_rounds: int
    level_s: float
    concurrencies: tuple[int, ...]
    attention: str
    batch_sizes: tuple[int, ...]
    seed: int


class SideBySide:
    """A served model and the peer with the same weights, both ready.

    Args:
        model: what is measured.
        files: of its export.
        server: that serves it.
        plan: what is measured of it.
        on_step: told what is being done.

    Raises:
        BenchError: the peer cannot be loaded.
    """

    def __init__(
        self, model: Prepared, files: Artefacts, server: ServedModel, plan: Plan, *, on_step: Progress
    ) -> None:
        self._model, self._files, self._server, self._plan, self._on_step = model, files, server, plan, on_step
        self._lists = {name: workloads.BY_NAME[name](plan.seed) for name in plan.workloads}
        self._tokenizer = PairTokenizer.of_parameters(files.tokenizer_file, files.tokenizer_parameters)
        self._other = OtherLoad()
        self._reference = self._reference_scores()
        gpu_peer.forget_reserved(plan.device.kind, plan.device_id)
        self._peer = self._load_peer("bfloat16")

    def close(self) -> None:
        """Give the peer's memory back."""
        self._peer.close()

    def other_load(self) -> float:
        """Share of all cores' time that other processes used during the rounds."""
        return self._other.share()

    def measure(self, name: str) -> WorkloadFigures:
        """Figures of one workload.

        Args:
            name: of the plan's.

        Raises:
            BenchError: the peer has no room for any batch.
            RerankError: the served model did not answer.
        """
        lists = self._lists[name]
        everything = [pair for texts in lists for pair in pairs_of(texts)]
        self._say(name, "batch sizes of the peer")
        one, bulk = (
            self._peer.sweep(pairs, self._plan.batch_sizes) for pairs in (pairs_of(longest(lists)), everything)
        )
        speed, to_reference = self._rounds(longest(lists), fastest(one))
        with contextlib.closing(Load(self._server, self._model.shape, lists, seed=self._plan.seed)) as load:
            levels = [self._level(load, name, concurrency) for concurrency in self._plan.concurrencies]
            best = max(levels, key=lambda level: level.pairs_per_s)
            found = self._capacity(load, best, everything, fastest(bulk), self._tokens_per_pair(lists))
        return WorkloadFigures(speed, levels, found, one, bulk, to_reference)

    def _rounds(self, texts: Workload, batch_size: int) -> tuple[WorkloadSpeed, list[Agreement]]:
        """One list at a time, as `make speed` does it; and each side's order beside fp32's."""
        contestants: list[Contestant] = [
            Served(self._server.client),
            Peer(self._peer.default, name=DEFAULT, batch_size=PEER_BATCH_SIZE),
            Peer(self._peer.tuned, name=BEST, batch_size=batch_size),
        ]
        rounds = run_rounds(
            contestants,
            [texts],
            n_rounds=self._plan.n_rounds,
            seed=self._plan.seed,
            on_call=lambda who: self._say(texts.name, who),
            during=self._other,
        )
        tokens = token_statistics(texts, self._token_counts(texts))
        speed = summarise(texts, rounds, tokens, ratios=[(DEFAULT, SERVED), (BEST, SERVED)])
        if len(texts.documents) == 1:
            return speed, []
        reference, scores = self._reference[texts.name], rounds.scores[texts.name]
        return speed, [Agreement(REFERENCE, who, kendall_tau(reference, scores[who])) for who in scores]

    def _level(self, load: Load, name: str, concurrency: int) -> LoadFigures:
        self._say(name, f"{concurrency} callers")
        return load.closed(concurrency, self._plan.level_s, WARM_UP_SHARE * self._plan.level_s)

    def _capacity(
        self, load: Load, best: LoadFigures, everything: Pairs, batch_size: int, tokens_per_pair: float
    ) -> Capacity:
        """Ours under its best load, then all lists in one call of the peer, in turns: each has the device alone."""
        callers = best.concurrency or 1
        served, peer = [], []
        for _ in range(CAPACITY_ROUNDS):
            served.append(self._level(load, best.workload, callers).pairs_per_s)
            self._say(best.workload, "all lists through the peer")
            peer.append(best_rate(self._peer.tuned, everything, batch_size))
        return capacity(callers, batch_size, served, peer, tokens_per_pair)

    def _tokens_per_pair(self, lists: Sequence[Workload]) -> float:
        return statistics.fmean(count for texts in lists for count in self._token_counts(texts))

    def _token_counts(self, texts: Workload) -> list[int]:
        return [int(count) for count in self._tokenizer.encode(texts.query, texts.documents).token_count[:, 0]]

    def _reference_scores(self) -> dict[str, list[float]]:
        """fp32 on the same device, gone again before anything is timed."""
        peer = self._load_peer("float32")
        with contextlib.closing(peer):
            return {name: peer.default(pairs_of(longest(lists))) for name, lists in self._lists.items()}

    def _load_peer(self, dtype: Type) -> DevicePeer:
        self._on_step(f"{self._model.shape}: loading sentence-transformers, {dtype}")
        plan = self._plan
        return DevicePeer(
            self._model.checkpoint,
            max_length=self._files.info.max_length,
            kind=plan.device.kind,
            device_id=plan.device_id,
            dtype=dtype,
            attention=plan.attention,
        )

    def _say(self, workload: str, what: str) -> None:
        self._on_step(f"{self._model.shape}, {workload}: {what}")


def longest(lists: Sequence[Workload]) -> Workload:
    """The list with most documents; the first of several."""
    return max(lists, key=lambda texts: len(texts.documents))


def pairs_of(texts: Workload) -> Pairs:
    """Query and document of each pair."""
    return [(texts.query, document) for document in texts.documents]
