"""What `make perf-gpu` measures, as data, and what is made of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from triton_rerank_bench.contestants import SERVED
from triton_rerank_bench.gpu_device import Device
from triton_rerank_bench.gpu_models import SHAPES
from triton_rerank_bench.gpu_peer import BEST, DEFAULT, BatchSize
from triton_rerank_bench.load import LoadFigures
from triton_rerank_bench.rounds import Agreement, Ratio, WorkloadSpeed
from triton_rerank_bench.speed import Target

REFERENCE = "sentence-transformers fp32"
ORDER_SLACK = 0.02  # of Kendall's tau; random weights hold documents close, and both types swap some of them
CAPACITY_WORKLOAD = "passages"
GOAL_DEVICE = "H100"


@dataclass(frozen=True)
class TriedSetting:
    """One way to serve the model.

    Attributes:
        setting: in words.
        pairs_per_s: closed loop, passages; None if it did not serve.
        refused: why it did not, in one line.
    """

    setting: str
    pairs_per_s: float | None
    refused: str | None = None


@dataclass(frozen=True)
class Capacity:
    """Most pairs a second of each side, in alternating rounds: ours with callers side by side, the peer's in one call.

    Attributes:
        concurrency: callers of ours at which it answered most pairs.
        peer_batch_size: at which the peer did.
        served_pairs_per_s: one a round.
        peer_pairs_per_s: one a round, all lists of the workload in one call.
        peer_tokens_per_s: median, real tokens.
        ratio: the peer's seconds a pair over ours.
    """

    concurrency: int
    peer_batch_size: int
    served_pairs_per_s: list[float]
    peer_pairs_per_s: list[float]
    peer_tokens_per_s: float
    ratio: Ratio


@dataclass(frozen=True)
class WorkloadFigures:
    """One workload.

    Attributes:
        speed: one list at a time, in alternating rounds.
        levels: ours under load, by callers.
        capacity: ours under load beside the peer.
        batch_sizes: of the peer, on one list.
        bulk_batch_sizes: of the peer, on all lists at once.
        to_reference: order of each side beside fp32's.
    """

    speed: WorkloadSpeed
    levels: list[LoadFigures]
    capacity: Capacity
    batch_sizes: list[BatchSize]
    bulk_batch_sizes: list[BatchSize]
    to_reference: list[Agreement]


@dataclass(frozen=True)
class Memory:
    """Device memory in MiB; None on a CPU.

    Attributes:
        server_mib: more than before the server was started, after every workload was asked for.
        peer_mib: most that torch held for the peer; its CUDA context comes on top.
    """

    server_mib: int | None
    peer_mib: int | None


@dataclass(frozen=True)
class ModelFigures:
    """One model.

    Attributes:
        shape: name.
        weights: "random", or the checkpoint's name.
        precision: of ours; the peer's is bf16.
        max_length: tokens a pair, the same for both.
        triton_version: as the server says.
        setting: the one that was measured, in words.
        config_change: of what was exported, as a diff.
        tried: settings that were tried for it.
        workloads: figures.
        memory: of the device.
        other_load: share of all cores' time that other processes used during the rounds.
        targets: met or missed.
    """

    shape: str
    weights: str
    precision: str
    max_length: int
    triton_version: str
    setting: str
    config_change: str
    tried: list[TriedSetting]
    workloads: list[WorkloadFigures]
    memory: Memory
    other_load: float
    targets: list[Target]


def capacity(
    concurrency: int, batch_size: int, served: Sequence[float], peer: Sequence[float], tokens_per_pair: float
) -> Capacity:
    """Sum up alternating rounds.

    Args:
        concurrency: callers of ours.
        batch_size: of the peer.
        served: pairs a second, one a round.
        peer: likewise.
        tokens_per_pair: mean.
    """
    ratios = [ours / theirs for ours, theirs in zip(served, peer, strict=True)]
    return Capacity(
        concurrency=concurrency,
        peer_batch_size=batch_size,
        served_pairs_per_s=list(served),
        peer_pairs_per_s=list(peer),
        peer_tokens_per_s=statistics.median(peer) * tokens_per_pair,
        ratio=Ratio(BEST, SERVED, statistics.median(ratios), min(ratios), max(ratios)),
    )


def judge(shape: str, device: Device, workloads: Sequence[WorkloadFigures]) -> list[Target]:
    """Hold figures against the targets. Speed is judged on GPUs only, the project's goal on the one it was set for."""
    targets = [_order(workloads)]
    found = next((w for w in workloads if w.speed.workload == CAPACITY_WORKLOAD), None)
    if found is None:
        return targets
    ratio, best = found.capacity.ratio.median, statistics.median(found.capacity.served_pairs_per_s)
    passed = ratio > 1 if device.kind == "cuda" else None
    targets.append(Target(f"served over {BEST}, pairs/s, {CAPACITY_WORKLOAD}: more than 1", ratio, passed))
    goal = SHAPES[shape].h100_pairs_per_s
    if goal is not None:
        on_goal_device = device.kind == "cuda" and GOAL_DEVICE in device.name
        text = f"pairs/s on one {GOAL_DEVICE}, {CAPACITY_WORKLOAD}: at least {goal:,.0f}"
        targets.append(Target(text, best, best >= goal if on_goal_device else None))
    return targets


def _order(workloads: Sequence[WorkloadFigures]) -> Target:
    """How much nearer to fp32's order ours is than the peer's default, in the workload where that is least."""
    nearer = []
    for workload in workloads:
        taus = {agreement.second: agreement.kendall_tau for agreement in workload.to_reference}
        if taus:
            nearer.append(taus[SERVED] - taus[DEFAULT])
    text = f"order beside fp32's, Kendall tau over that of {DEFAULT}: at least {-ORDER_SLACK:g}"
    return Target(text, min(nearer, default=0.0), min(nearer) >= -ORDER_SLACK if nearer else None)
