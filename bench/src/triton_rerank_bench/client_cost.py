"""What the client adds to a raw tritonclient call for 100 documents, in paired differences.

Two servers answer. The stand-in has no model and answers at once: the difference is the client's, and precise. A real
Triton needs a hundred times the difference, and its own time varies by more; what its statistics say of each call is
therefore taken off before calls are compared, and the plain difference stands beside.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tritonclient.grpc as triton
from rich.progress import Progress

from triton_rerank import TritonScorer
from triton_rerank_bench import workloads
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.repository import read_model
from triton_rerank_bench.served import serve
from triton_rerank_bench.speed import Target
from triton_rerank_bench.stand_in import stand_in
from triton_rerank_bench.triton_statistics import TritonStatistics
from triton_rerank_bench.ways import PAIRED, WAYS, Way, Ways
from triton_rerank_bench.workloads import Workload

MAX_ADDED_MS = 0.3
STAND_IN, TRITON = "stand-in", "Triton"
LETTERS = {"short": 32, "alike": 400}  # of each document; 400 are the mean of the passages
STAND_IN_ROUNDS = 5  # times the rounds of short documents on Triton: they cost nothing
LONG_ROUNDS = 0.1  # times the same: they cost most
LEAST_ROUNDS = 6  # of five, even least to most holds the median with less than 95 %
WARM_UP = 0.1  # rounds before the counted ones, as a share of them; two at least


@dataclass(frozen=True)
class Spread:
    """Milliseconds over the rounds; ``low`` to ``high`` holds the true median with 95 % confidence."""

    median: float
    low: float
    high: float
    quartile_1: float
    quartile_3: float
    min: float
    max: float


@dataclass(frozen=True)
class Cost:
    """One client against the raw call that it stands for.

    Attributes:
        server: `STAND_IN` or `TRITON`.
        workload: name of the documents.
        client: "client" or "client aio".
        n_rounds: counted calls of each.
        requests: that the client split the documents into; the raw call is always one.
        raw_ms: median of the raw call.
        client_ms: median of the client's.
        added: client's minus raw, round by round.
        added_outside: the same without the server's own time; None where it is not known: the stand-in's is nearly
            nothing, and the times of parallel requests cannot be added.
    """

    server: str
    workload: str
    client: Way
    n_rounds: int
    requests: int
    raw_ms: float
    client_ms: float
    added: Spread
    added_outside: Spread | None


@dataclass(frozen=True)
class ClientCostReport:
    """Everything that one run measured.

    Attributes:
        model: public model name.
        precision: of the served model.
        triton_version: as the server says.
        other_load: share of all cores' time that other processes used meanwhile, 0 to 1.
        costs: figures.
        targets: met or missed; None where the interval holds the bound.
    """

    model: str
    precision: str
    triton_version: str
    other_load: float
    costs: list[Cost]
    targets: list[Target]


@dataclass
class Samples:
    """Seconds by way, one a round, and how many requests the last call of each was."""

    total_s: dict[Way, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    server_s: dict[Way, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    requests: dict[Way, int] = field(default_factory=dict)


def measure_client_cost(
    model_repository: Path, model: str | None, *, n_rounds: int, seed: int, progress: Progress
) -> ClientCostReport:
    """Time raw calls and the clients' against both servers.

    Args:
        model_repository: where Triton finds the model.
        model: public model name; None means the only one there.
        n_rounds: counted rounds with short documents on Triton, `LEAST_ROUNDS` or more.
        seed: of the texts and of the turns.
        progress: where progress is shown.

    Raises:
        BenchError: the repository is not there, or the client split documents of one length.
        ServerStartError: Triton did not start.
        RerankError: a server did not answer.
    """
    files = read_model(model_repository, model)
    short, alike = (one_length(name, letters, seed) for name, letters in LETTERS.items())
    runs = _Runs(files.info.name, seed, progress)
    with stand_in(model_repository) as target:
        runs.take(STAND_IN, target, short, n_rounds * STAND_IN_ROUNDS)
        runs.take(STAND_IN, target, alike, n_rounds * STAND_IN_ROUNDS)
    with _triton(model_repository, files.info.name, progress) as (target, version):
        runs.take(TRITON, target, short, n_rounds)
        runs.take(TRITON, target, alike, n_rounds * LONG_ROUNDS)
        runs.take(TRITON, target, workloads.passages(seed), n_rounds * LONG_ROUNDS, may_split=True)
    info = files.info
    return ClientCostReport(info.name, info.precision, version, runs.load.share(), runs.costs, judge(runs.costs))


def one_length(name: str, letters: int, seed: int) -> Workload:
    """100 different documents of equal length, which any plan sends in one request.

    Args:
        name: as the report calls it.
        letters: characters, and bytes, of each document.
        seed: of the texts.
    """
    maker = workloads.TextMaker(seed)
    query = maker.words(workloads.QUERY_WORDS // 2)
    texts = (maker.document(letters, query)[:letters] for _ in range(workloads.N_DOCUMENTS))
    return Workload(name, " ".join(query), list(texts), calls=1)


def summarise(server: str, workload: Workload, samples: Samples) -> list[Cost]:
    """Paired differences of both clients.

    Args:
        server: who answered.
        workload: what was asked.
        samples: of all rounds.
    """
    return [_cost(server, workload, samples, raw, client) for raw, client in PAIRED]


def spread(values_ms: Sequence[float]) -> Spread:
    """Median with its interval, quartiles and extremes.

    Args:
        values_ms: at least `LEAST_ROUNDS`.
    """
    ordered = sorted(values_ms)
    n = len(ordered)
    place = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))  # binomial: how many of n fall under the true median
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive")
    return Spread(
        median=statistics.median(ordered),
        low=ordered[place],
        high=ordered[n - 1 - place],
        quartile_1=quartiles[0],
        quartile_3=quartiles[2],
        min=ordered[0],
        max=ordered[-1],
    )


def judge(costs: Sequence[Cost]) -> list[Target]:
    """Hold what the blocking client adds against the bound; the server's own time counts for nothing where known."""
    targets = []
    for cost in costs:
        if cost.client == "client" and cost.requests == 1 and (cost.server == STAND_IN or cost.added_outside):
            added = cost.added_outside or cost.added
            unclear = added.low <= MAX_ADDED_MS < added.high
            text = f"client − raw, 100 documents, {cost.server}, {cost.workload}, ms: at most {MAX_ADDED_MS:g}"
            targets.append(Target(text, added.median, None if unclear else added.median <= MAX_ADDED_MS))
    return targets


class _Runs:
    """Takes samples and keeps what they come to."""

    def __init__(self, model: str, seed: int, progress: Progress) -> None:
        self.costs: list[Cost] = []
        self.load = OtherLoad()
        self._model, self._seed, self._progress = model, seed, progress

    def take(self, server: str, target: str, workload: Workload, rounds: float, *, may_split: bool = False) -> None:
        counted = max(LEAST_ROUNDS, round(rounds))
        warm_up = max(2, round(counted * WARM_UP))
        task = self._progress.add_task(f"{server}, {workload.name}", total=warm_up + counted)

        async def run(own_time: TritonStatistics | None) -> Samples:
            samples = Samples()
            shuffler = random.Random(self._seed)  # noqa: S311 - an order, no secret
            async with aclosing(Ways(target, self._model)) as ways:
                for number in range(warm_up + counted):
                    kept = samples if number >= warm_up else Samples()
                    for way in shuffler.sample(WAYS, len(WAYS)):
                        await _turn(ways, way, workload, own_time, kept)
                    self._progress.advance(task)
            return samples

        with self.load, closing(TritonStatistics(target, self._model)) as counters:
            try:
                samples = asyncio.run(run(counters if server == TRITON and not may_split else None))
            except triton.InferenceServerException as exc:
                raise BenchError(f"{server} did not answer a raw call with {workload.name}: {exc}") from exc
        if not may_split and set(samples.requests.values()) != {1}:
            raise BenchError(f"the client split {workload.name}: it cannot be held against one raw request")
        self.costs += summarise(server, workload, samples)


@contextmanager
def _triton(model_repository: Path, model: str, progress: Progress) -> Iterator[tuple[str, str]]:
    """Target and version of a running Triton."""
    task = progress.add_task("starting Triton", total=1)
    with serve(model_repository, model, on_progress=lambda step: progress.update(task, description=step)) as server:
        progress.advance(task)
        assert isinstance(server.client.scorer, TritonScorer)
        yield server.client.scorer.target, server.triton_version


async def _turn(ways: Ways, way: Way, workload: Workload, own_time: TritonStatistics | None, samples: Samples) -> None:
    before = own_time.read() if own_time else None
    start = time.perf_counter()
    requests = await ways.call(way, workload)
    samples.total_s[way].append(time.perf_counter() - start)
    samples.requests[way] = requests
    if own_time and before:
        samples.server_s[way].append(own_time.after(before, requests).seconds)


def _cost(server: str, workload: Workload, samples: Samples, raw: Way, client: Way) -> Cost:
    total, server_s = samples.total_s, samples.server_s
    outside = {way: [t - s for t, s in zip(total[way], server_s[way], strict=False)] for way in (raw, client)}
    return Cost(
        server=server,
        workload=workload.name,
        client=client,
        n_rounds=len(total[raw]),
        requests=samples.requests[client],
        raw_ms=1e3 * statistics.median(total[raw]),
        client_ms=1e3 * statistics.median(total[client]),
        added=_added(total[raw], total[client]),
        added_outside=_added(outside[raw], outside[client]) if server_s[raw] else None,
    )


def _added(raw_s: Sequence[float], client_s: Sequence[float]) -> Spread:
    return spread([1e3 * (client - raw) for raw, client in zip(raw_s, client_s, strict=True)])
