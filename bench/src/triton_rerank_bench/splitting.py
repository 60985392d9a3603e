"""What splitting a list into requests does: to padding, to Triton's batches and to the time.

The same lists are sent in four ways over one connection, with as many requests under way; only the groups differ.
``plan`` is the client's own; ``ideal`` is the same rule told the true token counts, which the client only estimates;
``sorted`` is ordered by length and cut at max_batch_size; ``naive`` is cut there in the caller's order.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from triton_rerank import RerankClient, TritonScorer
from triton_rerank._plan import BYTES_PER_TOKEN, REQUEST_COST_TOKENS, Limits
from triton_rerank.contract import ENCODER_SUFFIX, MAX_REQUEST_BYTES
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.raw import Sender
from triton_rerank_bench.repository import read_model
from triton_rerank_bench.rounds import Ratio
from triton_rerank_bench.served import serve
from triton_rerank_bench.strategies import (
    STRATEGIES,
    ListFigures,
    PlannedList,
    Strategy,
    in_order,
    make_lists,
    plan_list,
)
from triton_rerank_bench.triton_statistics import Counts, TritonStatistics
from triton_rerank_bench.variants import without_queue_bounds
from triton_rerank_bench.workloads import SPREAD, Workload

CALLERS = (1, 8)
# Name -> documents of each list, and the spread of their lengths. Mixed sizes grow by half, from 10 to 1,000.
SETS = {
    "mixed": ((10, 15, 23, 35, 53, 81, 123, 187, 285, 433, 658, 1000), SPREAD),
    "like": ((100,) * 8, 0.02),
}


@dataclass(frozen=True)
class StrategyFigures:
    """One strategy on one set of lists.

    Attributes:
        strategy: which.
        requests: of all lists.
        padding: padded tokens over real tokens.
        rows_per_execution: Triton's inference count over its execution count, of the encoder.
        requests_per_execution: how many requests Triton's dynamic batcher merged.
        seconds: median over the rounds, all lists.
        ratio: of the seconds to those of the naive strategy, paired within rounds.
    """

    strategy: Strategy
    requests: int
    padding: float
    rows_per_execution: float
    requests_per_execution: float
    seconds: float
    ratio: Ratio


@dataclass(frozen=True)
class SetFigures:
    """One set of lists from some callers at once."""

    lists: str
    callers: int
    documents: int
    tokens: int
    strategies: list[StrategyFigures]


@dataclass(frozen=True)
class SplittingReport:
    """Everything that one run measured.

    Attributes:
        model: public model name.
        precision: of the served model.
        triton_version: as the server says.
        other_load: share of all cores' time that other processes used meanwhile, 0 to 1.
        max_batch_size: most pairs in a request.
        length_ladder: padded lengths in tokens.
        bytes_per_token: as the client estimates.
        true_bytes_per_token: of the mixed lists, bytes counted as the client does.
        request_cost_tokens: padded tokens that the client wants one more request to save.
        n_rounds: counted rounds.
        lists: of each set, one by one.
        sets: figures.
    """

    model: str
    precision: str
    triton_version: str
    other_load: float
    max_batch_size: int
    length_ladder: tuple[int, ...]
    bytes_per_token: float
    true_bytes_per_token: float
    request_cost_tokens: int
    n_rounds: int
    lists: dict[str, list[ListFigures]]
    sets: list[SetFigures]


@dataclass
class Samples:
    """Of one set of lists, one a round."""

    seconds: dict[Strategy, list[float]] = field(default_factory=lambda: {s: [] for s in STRATEGIES})
    counts: dict[Strategy, list[Counts]] = field(default_factory=lambda: {s: [] for s in STRATEGIES})


def measure_splitting(
    model_repository: Path, model: str | None, *, n_rounds: int, seed: int, progress: Progress
) -> SplittingReport:
    """Send lists of mixed and of like length in all four ways, from one caller and from eight.

    Args:
        model_repository: where Triton finds the model.
        model: public model name; None means the only one there.
        n_rounds: rounds.
        seed: of the texts and of the turns.
        progress: where progress is shown.

    Raises:
        BenchError: the repository is not there, or the client splits in another way than is measured here.
        ServerStartError: Triton did not start.
        RerankError: the server did not answer.
    """
    files = read_model(model_repository, model)
    texts = {name: make_lists(sizes, spread=spread, seed=seed) for name, (sizes, spread) in SETS.items()}
    n_turns = len(SETS) * len(CALLERS) * len(STRATEGIES) * n_rounds
    task = progress.add_task("starting Triton", total=n_turns + sum(len(workloads) for workloads in texts.values()))
    load = OtherLoad()

    def step(doing: str) -> None:
        progress.update(task, description=doing, advance=1)

    with (
        without_queue_bounds(model_repository, files.info.name) as patient,
        serve(patient, files.info.name, on_progress=lambda doing: progress.update(task, description=doing)) as server,
        closing(_Turns(server.client, files.info.name, step)) as turns,
    ):
        planned = {name: [turns.plan(workload) for workload in workloads] for name, workloads in texts.items()}
        with load:
            sets = [
                summarise(name, callers, lists, turns.rounds(name, callers, lists, n_rounds, seed))
                for name, lists in planned.items()
                for callers in CALLERS
            ]
    figures = {name: [entry.figures for entry in lists] for name, lists in planned.items()}
    return SplittingReport(
        model=files.info.name,
        precision=files.info.precision,
        triton_version=server.triton_version,
        other_load=load.share(),
        max_batch_size=turns.limits.max_batch_size,
        length_ladder=turns.limits.length_ladder,
        bytes_per_token=BYTES_PER_TOKEN,
        true_bytes_per_token=sum(f.bytes for f in figures["mixed"]) / sum(f.tokens for f in figures["mixed"]),
        request_cost_tokens=REQUEST_COST_TOKENS,
        n_rounds=n_rounds,
        lists=figures,
        sets=sets,
    )


def summarise(name: str, callers: int, lists: Sequence[PlannedList], samples: Samples) -> SetFigures:
    """Figures of one set of lists.

    Args:
        name: of the set.
        callers: at once.
        lists: all of it.
        samples: of all rounds.
    """
    figures = [entry.figures for entry in lists]
    tokens = sum(f.tokens for f in figures)
    return SetFigures(
        lists=name,
        callers=callers,
        documents=sum(f.documents for f in figures),
        tokens=tokens,
        strategies=[_figures(s, figures, tokens, samples) for s in STRATEGIES],
    )


class _Turns:
    """Sends lists to one server."""

    def __init__(self, client: RerankClient, model: str, on_step: Callable[[str], None]) -> None:
        assert isinstance(client.scorer, TritonScorer)
        info = client.model_info()
        self.limits = Limits(info.max_batch_size, MAX_REQUEST_BYTES, info.length_ladder)
        self._client = client
        self._sender = Sender(client.scorer.target, model)
        self._encoder = TritonStatistics(client.scorer.target, model + ENCODER_SUFFIX)
        self._on_step = on_step

    def close(self) -> None:
        """Close the connections, but for the client's."""
        self._sender.close()
        self._encoder.close()

    def plan(self, workload: Workload) -> PlannedList:
        """Ask the server for the token counts, then group."""
        self._on_step(f"tokens of {workload.name}")
        everything = in_order(len(workload.documents), self.limits.max_batch_size)
        token_counts = self._sender.send(workload.query, workload.documents, everything)
        planned = plan_list(workload, token_counts, self.limits)
        sent = self._client.rerank(workload.query, workload.documents).timings.requests
        if sent != planned.figures.requests["plan"]:
            raise BenchError(
                f"{workload.name}: the client sent {sent} requests, not the {planned.figures.requests} here"
            )
        return planned

    def rounds(self, name: str, callers: int, lists: Sequence[PlannedList], n_rounds: int, seed: int) -> Samples:
        """Each round has one turn of each strategy, in a new order; a turn sends all lists."""
        samples, shuffler = Samples(), random.Random(seed)  # noqa: S311 - an order, no secret
        self._encoder.settled()  # planning asked too
        for _ in range(n_rounds):
            for strategy in shuffler.sample(STRATEGIES, len(STRATEGIES)):
                self._on_step(f"{name}, {callers} at a time, {strategy}")
                before = self._encoder.read()
                samples.seconds[strategy].append(self._turn(strategy, callers, lists))
                n_requests = sum(entry.figures.requests[strategy] for entry in lists)
                samples.counts[strategy].append(self._encoder.after(before, n_requests))
        return samples

    def _turn(self, strategy: Strategy, callers: int, lists: Sequence[PlannedList]) -> float:
        """Seconds until the last list is answered; each caller takes the next list when it is done with one."""
        start = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            for _ in pool.map(functools.partial(self._send, strategy), lists):
                pass
        return time.perf_counter() - start

    def _send(self, strategy: Strategy, entry: PlannedList) -> None:
        self._sender.send(entry.workload.query, entry.workload.documents, entry.groups[strategy])


def _figures(strategy: Strategy, lists: Sequence[ListFigures], tokens: int, samples: Samples) -> StrategyFigures:
    counts = samples.counts[strategy]
    executions = sum(c.executions for c in counts)
    seconds, naive = samples.seconds[strategy], samples.seconds["naive"]
    ratios = [of_round / of_naive for of_round, of_naive in zip(seconds, naive, strict=True)]
    return StrategyFigures(
        strategy=strategy,
        requests=sum(f.requests[strategy] for f in lists),
        padding=sum(f.padded_tokens[strategy] for f in lists) / tokens,
        rows_per_execution=sum(c.inferences for c in counts) / executions,
        requests_per_execution=sum(c.requests for c in counts) / executions,
        seconds=statistics.median(seconds),
        ratio=Ratio(strategy, "naive", statistics.median(ratios), min(ratios), max(ratios)),
    )
