"""What a run found of the peers, and how it stands to the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from triton_rerank_bench.rounds import Ratio, Timing
from triton_rerank_bench.speed import Target
from triton_rerank_bench.workloads import TokenStatistics

MIN_OVER_DEFAULT = 2.5  # seconds of the fastest peer at its default over ours served
MIN_OVER_BEST = 1.2  # of any peer at its best


@dataclass(frozen=True)
class AtSetting:
    """A peer at one setting, timed in the rounds.

    Attributes:
        setting: as the report says it.
        kendall_tau: of its order to torch fp32.
        timing: of the rounds.
        ratio: its seconds over ours served, paired within rounds; None if its order is wrong.
    """

    setting: str
    kendall_tau: float
    timing: Timing
    ratio: Ratio | None


@dataclass(frozen=True)
class PeerFigures:
    """A peer on one workload.

    Attributes:
        peer: name.
        precision: that its order was held to.
        least_tau: bound of that precision.
        notes: such as the precision that it computes in.
        default: as it comes; None if it was not measured.
        best: its fastest setting of those tried whose order is right; None likewise.
        tried: seconds of each setting in the search.
        not_measured: why not.
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
    """One workload.

    Attributes:
        workload: name.
        tokens: of its pairs.
        n_rounds: counted ones.
        ours: served and in process.
        served_over_in_process: seconds, median of the rounds.
        our_kendall_tau: of the served order to torch fp32.
        peers: figures.
        idle_share: of one core, used by all waiting workers together.
    """

    workload: str
    tokens: TokenStatistics
    n_rounds: int
    ours: list[Timing]
    served_over_in_process: float
    our_kendall_tau: float
    peers: list[PeerFigures]
    idle_share: float


@dataclass
class PeersReport:
    """Everything that one run measured."""

    model: str
    precision: str
    backend: str
    max_length: int
    n_threads: int
    triton_version: str
    other_load: float = 0.0
    interrupted: bool = False
    workloads: list[WorkloadPeers] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


def judge(workloads: Sequence[WorkloadPeers]) -> list[Target]:
    """Hold the figures of every workload against the targets."""
    targets = []
    for figures in workloads:
        for kind, bound, at_settings in (
            ("default", MIN_OVER_DEFAULT, [peer.default for peer in figures.peers]),
            ("best", MIN_OVER_BEST, [peer.best for peer in figures.peers]),
        ):
            ratios = [(each.ratio.median, each.ratio.numerator) for each in at_settings if each and each.ratio]
            if ratios:
                ratio, name = min(ratios)
                text = f"{figures.workload}: fastest peer at its {kind} ({name}) / served: at least {bound:g}"
                targets.append(Target(text, ratio, ratio >= bound))
    return targets
