"""One model served on a device: levels of load, and beside peers with the same weights and texts, in turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from triton_rerank_bench.compare.catalogue import Peer, on_device, without_padding
from triton_rerank_bench.compare.contestants import SERVED
from triton_rerank_bench.compare.process import PeerContestant, Workers
from triton_rerank_bench.compare.race import Ratio, best_of, kendall_tau, ratio, reference_scores, search
from triton_rerank_bench.errors import PeerError
from triton_rerank_bench.gpu.device import Device
from triton_rerank_bench.gpu.models import H100_FLOPS, SHAPES, Prepared
from triton_rerank_bench.load.generator import Load, LoadFigures
from triton_rerank_bench.machine import usable_cores
from triton_rerank_bench.progress import OnStep
from triton_rerank_bench.report import Json, target
from triton_rerank_bench.served import ServedModel, read_model, serve
from triton_rerank_bench.tune.variants import Change, variant
from triton_rerank_bench.workloads import BY_NAME, N_LISTS, Workload, passages

WORKLOAD, AS_EXPORTED = "passages", "as exported"
ROUNDS = 3
WARM_UP_SHARE = 0.4  # of a level's seconds go before it
ORDER_SLACK = 0.02  # of Kendall's tau; random weights hold documents close, and both types swap some of them
BATCH_SIZES, BATCH_TOKENS = (32, 128, 512), (16_384, 65_536)  # of sentence-transformers, of torch without padding
Levels = Sequence[tuple[str, int]]  # workload and callers
LISTS: dict[str, Callable[[int], list[Workload]]] = {
    **BY_NAME,
    "ten": lambda seed: [replace(passages(seed + i, 10), name="ten") for i in range(N_LISTS)],
}


@dataclass
class Served:
    """One way to serve one shape, filled level by level.

    Attributes:
        way: `AS_EXPORTED`, a setting, or the form that Triton's own backend serves.
        server_mib: device memory that was not taken before the server; None where nobody tells.
    """

    shape: str
    way: str
    triton_version: str | None = None
    levels: list[LoadFigures] = field(default_factory=list)
    server_mib: int | None = None


@dataclass(frozen=True)
class Beside:
    """One peer beside ours, in turns: ours with callers side by side, the peer's all lists in one call.

    The ratio is the peer's seconds a pair over ours, paired within rounds; taus are of one list to torch fp32's order.
    """

    shape: str
    peer: str
    callers: int
    served_pairs_per_s: list[float]
    peer_pairs_per_s: list[float]
    ratio: Ratio
    served_tau: float
    peer_tau: float


@dataclass(frozen=True)
class Ground:
    """Where and how long it is measured; a level of load takes so many seconds after its warm-up."""

    device: Device
    level_s: float
    seed: int
    on_step: OnStep

    def level(self, load: Load, callers: int) -> LoadFigures:
        """So many callers side by side."""
        return load.closed(callers, self.level_s, WARM_UP_SHARE * self.level_s)


@contextmanager
def serving(figures: Served, repository: Path, change: Change, levels: Levels, on: Ground) -> Iterator[ServedModel]:
    """A Triton of its own for a model with changed configs, which was loaded level by level.

    Raises:
        ServerStartError: Triton does not start with it.
    """
    before, shape = on.device.memory_used_mib(), figures.shape
    with variant(repository, shape, change) as copy, serve(copy, shape, on_progress=on.on_step) as server:
        figures.triton_version = server.triton_version
        for name, callers in levels:
            on.on_step(f"{shape}: {name}, {callers} callers")
            with closing(Load(server, shape, LISTS[name](on.seed), seed=on.seed)) as load:
                figures.levels.append(on.level(load, callers))
        after = on.device.memory_used_mib()
        figures.server_mib = None if before is None or after is None else after - before
        yield server


def beside_peers(server: ServedModel, prepared: Prepared, callers: int, on: Ground) -> tuple[list[Beside], list[str]]:
    """Peers at their best setting, in turns with ours, and the peers that did not work.

    Raises:
        PeerError: sentence-transformers in fp32, which gives the reference, does not work.
    """
    shape, lists, device = prepared.shape, BY_NAME[WORKLOAD](on.seed), on.device.torch_name
    peers = on_device(device, "sdpa", BATCH_SIZES), without_padding(device, BATCH_TOKENS)
    max_length, folder = read_model(prepared.repository, shape).info.max_length, prepared.checkpoint.resolve()
    with (
        Workers(lambda _: (Path(sys.executable), folder), max_length=max_length, n_threads=usable_cores()) as workers,
        closing(Load(server, shape, lists, seed=on.seed)) as load,
    ):
        reference = reference_scores(peers[0], {"dtype": "float32"}, lists[:1], workers, on.on_step)[WORKLOAD]
        taus = {SERVED: kendall_tau(reference, server.client.score(lists[0].query, lists[0].documents))}
        a_pair: dict[str, list[float]] = {SERVED: []}  # seconds, one a round
        tuned, failed = [], []
        for peer in peers:
            try:
                contestant, scores = _tuned(peer, lists, workers, on)
            except PeerError as exc:
                failed.append(f"{shape}, {peer.name}: {exc}")
                continue
            tuned.append(contestant)
            taus[contestant.name], a_pair[contestant.name] = kendall_tau(reference, scores), []
        _, bulk = everything(peers[0], lists)
        for _ in range(ROUNDS):
            on.on_step(f"{shape}: in turns with peers")
            a_pair[SERVED].append(1 / on.level(load, callers).pairs_per_s)
            for each in tuned:
                start = time.perf_counter()
                each.scores(bulk.query, bulk.documents)
                a_pair[each.name].append((time.perf_counter() - start) / len(bulk.documents))
    rates = {name: [1 / each for each in seconds] for name, seconds in a_pair.items()}
    return [
        Beside(shape, name, callers, rates[SERVED], rates[name], ratio(name, SERVED, a_pair), taus[SERVED], taus[name])
        for name in (each.name for each in tuned)
    ], failed


def _tuned(peer: Peer, lists: Sequence[Workload], workers: Workers, on: Ground) -> tuple[PeerContestant, list[float]]:
    """The peer at its fastest setting for all lists in one call, and its scores of the first list."""
    asked, bulk = everything(peer, lists)
    order = range(len(bulk.documents))  # of no meaning: only seconds are looked for
    best = best_of(asked, search(asked, asked.settings, bulk, order, workers, on.on_step)).contestant
    alone = {name: value for name, value in best.options.items() if name != "queries"}
    return best, best.process.scores(lists[0].query, lists[0].documents, alone)


def everything(peer: Peer, lists: Sequence[Workload]) -> tuple[Peer, Workload]:
    """All lists as one, each pair with its own query, and the peer that is asked for it."""
    queries = [texts.query for texts in lists for _ in texts.documents]
    settings = tuple(replace(each, options={**each.options, "queries": queries}) for each in peer.settings)
    documents = [document for texts in lists for document in texts.documents]
    return replace(peer, settings=settings), Workload(f"{lists[0].name}, all lists", "", documents, calls=1)


def judge(device: Device, rate: float, served: Sequence[Served], beside: Sequence[Beside]) -> list[Json]:
    """Hold figures against the targets. Speed is judged on GPUs only, each by its own matrix rate."""
    on_a_gpu, rows = device.kind == "cuda", []
    for each in (figures for figures in served if figures.way == AS_EXPORTED):
        best = max((level.pairs_per_s for level in each.levels if level.workload == WORKLOAD), default=0.0)
        goal = SHAPES[each.shape].h100_pairs_per_s
        if goal is not None:
            wanted = f"{goal:,.0f} × {rate / H100_FLOPS:.3f}, this device's matrix rate over an H100's"
            least = round(goal * rate / H100_FLOPS)
            rows.append(target(f"{each.shape}: pairs/s of {WORKLOAD}, {wanted}", best, at_least=least, judged=on_a_gpu))
    for peer in beside:
        order, what = peer.served_tau - peer.peer_tau, f"{peer.shape}: Kendall tau to fp32's order over {peer.peer}"
        rows.append(target(what, order, at_least=-ORDER_SLACK))
        what = f"{peer.shape}: served over {peer.peer}, {WORKLOAD}"
        rows.append(target(what, peer.ratio.median, at_least=1, judged=on_a_gpu))
    return rows
