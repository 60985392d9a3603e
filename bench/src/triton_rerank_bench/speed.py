"""Measures speed: served, in process and sentence-transformers in one run, with the server's memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, TaskID

from triton_rerank_bench import workloads
from triton_rerank_bench.contestants import (
    IN_PROCESS,
    PEER,
    PEER_BATCH_SIZE,
    PEER_SMALL_BATCHES,
    SERVED,
    SMALL_BATCH_SIZE,
    Contestant,
    InProcess,
    Peer,
    Predict,
    Served,
    load_cross_encoder,
    n_threads,
)
from triton_rerank_bench.floor import Floor, LinearLayers, measure_floor
from triton_rerank_bench.list_sizes import SIZES, SizeSpeed, measure_list_sizes
from triton_rerank_bench.machine import OtherLoad, describe_machine
from triton_rerank_bench.memory import PeakMemory, sample, watching
from triton_rerank_bench.repository import read_model
from triton_rerank_bench.rounds import Rounds, WorkloadSpeed, run_rounds, summarise, turns
from triton_rerank_bench.served import ServedModel, serve
from triton_rerank_bench.workloads import Workload, token_statistics

RATIOS = ((SERVED, IN_PROCESS), (PEER, SERVED), (PEER_SMALL_BATCHES, SERVED))
MEMORY_CALLS = 5  # untimed calls of the longest workload, watched closely

MAX_OVERHEAD = 1.03  # served over in process, 100 pairs
MAX_SINGLE_MS = 1.5  # served minus in process, one pair
MAX_FLOOR = 1.0  # served over the linear layers alone in bf16
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}  # without one of them, bf16 is no floor
MAX_SIZE_EFFECT = 0.1  # time a token, from the shortest to the longest list, against that of 100 documents
MIN_SPEEDUP = 2.0  # sentence-transformers fp32 over served int8
MAX_MEMORY_BYTES = 10**9


@dataclass(frozen=True)
class Target:
    """Something that the project set itself.

    Attributes:
        text: what, with the bound.
        value: measured.
        passed: whether it holds; None where this run cannot tell.
    """

    text: str
    value: float
    passed: bool | None


@dataclass(frozen=True)
class SpeedReport:
    """Everything that one run measured.

    Attributes:
        model: public model name.
        precision: of the served model.
        max_length: tokens a pair, the same for all contestants.
        n_threads: threads that each contestant computes with.
        n_rounds: counted rounds.
        triton_version: as the server says.
        other_load: share of all cores' time that other processes used during the turns, 0 to 1.
        workloads: figures.
        floor: of 100 pairs.
        list_sizes: time a token, by the number of documents.
        server_memory: of tritonserver and its stub processes.
        targets: met or missed.
    """

    model: str
    precision: str
    max_length: int
    n_threads: int
    n_rounds: int
    triton_version: str
    other_load: float
    workloads: list[WorkloadSpeed]
    floor: Floor
    list_sizes: list[SizeSpeed]
    server_memory: PeakMemory
    targets: list[Target]


def measure_speed(
    model_repository: Path, model: str | None, checkpoint: Path, *, n_rounds: int, seed: int, progress: Progress
) -> SpeedReport:
    """Time all contestants in one run.

    Args:
        model_repository: where Triton finds the served model.
        model: public model name; None means the only one there.
        checkpoint: PyTorch folder that the served model was exported from.
        n_rounds: counted rounds.
        seed: of the texts and of the turns.
        progress: where progress is shown.

    Raises:
        BenchError: the repository or the checkpoint is not there, or the server ended.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    files = read_model(model_repository, model)
    threads = n_threads(files)
    texts = [workloads.passages(seed), workloads.single(seed)]
    n_turns = turns(4, len(texts), n_rounds) + turns(2, 1, n_rounds) + turns(len(SIZES), 1, n_rounds)
    task = progress.add_task("loading sentence-transformers", total=n_turns)
    predict = load_cross_encoder(checkpoint, max_length=files.info.max_length, n_threads=threads)
    in_process = InProcess(files)
    layers = LinearLayers(checkpoint, _tokens(texts[0], in_process))
    with serve(model_repository, files.info.name, on_progress=lambda step: _show(progress, task, step)) as server:
        measured = _run(
            server, in_process, predict, layers, texts, n_rounds, seed, lambda name: _next(progress, task, name)
        )
        version = server.triton_version
    figures = [_summarise(workload, measured.rounds, in_process) for workload in texts]
    pair = measured.rounds.seconds[texts[1].name]
    single_ms = statistics.median(1e3 * (a - b) for a, b in zip(pair[SERVED], pair[IN_PROCESS], strict=True))
    return SpeedReport(
        model=files.info.name,
        precision=files.info.precision,
        max_length=files.info.max_length,
        n_threads=threads,
        n_rounds=n_rounds,
        triton_version=version,
        other_load=measured.other_load,
        workloads=figures,
        floor=measured.floor,
        list_sizes=measured.list_sizes,
        server_memory=measured.memory,
        targets=[
            *judge(figures[0], single_ms, measured.list_sizes, files.info.precision, measured.memory),
            judge_floor(measured.floor, describe_machine().cpu_flags),
        ],
    )


@dataclass(frozen=True)
class _Measured:
    rounds: Rounds
    floor: Floor
    list_sizes: list[SizeSpeed]
    memory: PeakMemory
    other_load: float


def _run(
    server: ServedModel,
    in_process: InProcess,
    predict: Predict,
    layers: LinearLayers,
    texts: Sequence[Workload],
    n_rounds: int,
    seed: int,
    on_turn: Callable[[str], None],
) -> _Measured:
    peak, load, served = PeakMemory(), OtherLoad(), Served(server.client)

    def between_turns(name: str) -> None:
        peak.take(sample(server.pid))  # here, where nothing is timed
        on_turn(name)

    contestants: list[Contestant] = [
        served,
        in_process,
        Peer(predict, name=PEER, batch_size=PEER_BATCH_SIZE),
        Peer(predict, name=PEER_SMALL_BATCHES, batch_size=SMALL_BATCH_SIZE),
    ]
    rounds = run_rounds(contestants, texts, n_rounds=n_rounds, seed=seed, on_call=between_turns, during=load)
    floor = measure_floor(served, layers, texts[0], n_rounds=n_rounds, seed=seed, on_call=between_turns, during=load)
    sizes = measure_list_sizes(
        served,
        lambda each: _tokens(each, in_process),
        n_rounds=n_rounds,
        seed=seed,
        on_call=between_turns,
        during=load,
    )
    _watch_memory(served, texts[0], server.pid, peak)
    return _Measured(rounds, floor, sizes, peak, load.share())


def judge(
    passages: WorkloadSpeed, single_ms: float, sizes: Sequence[SizeSpeed], precision: str, memory: PeakMemory
) -> list[Target]:
    """Hold the figures against the targets.

    Args:
        passages: figures of the 100 pairs.
        single_ms: served minus in process, one pair, milliseconds.
        sizes: time a token, by the number of documents.
        precision: of the served model; the speed-up is a target for int8 only.
        memory: of the server.
    """
    ratios = {(ratio.numerator, ratio.denominator): ratio.median for ratio in passages.ratios}
    overhead, speedup = ratios[SERVED, IN_PROCESS], ratios[PEER, SERVED]
    int8 = precision == "int8"
    effect = max(abs(size.over_reference.median - 1) for size in sizes)
    return [
        Target(f"served / in process, 100 pairs: at most {MAX_OVERHEAD:g}", overhead, overhead <= MAX_OVERHEAD),
        Target(f"served − in process, one pair, ms: at most {MAX_SINGLE_MS:g}", single_ms, single_ms <= MAX_SINGLE_MS),
        Target(
            f"time a token, {min(SIZES)} to {max(SIZES):,} documents, off that of 100: at most {MAX_SIZE_EFFECT:g}",
            effect,
            effect <= MAX_SIZE_EFFECT,
        ),
        Target(
            f"sentence-transformers fp32 / served int8, 100 pairs: at least {MIN_SPEEDUP:g}",
            speedup,
            speedup >= MIN_SPEEDUP if int8 else None,
        ),
        Target(
            f"peak server memory, MB: under {MAX_MEMORY_BYTES // 10**6}",
            memory.pss_bytes / 1e6,
            memory.pss_bytes < MAX_MEMORY_BYTES,
        ),
    ]


def judge_floor(floor: Floor, cpu_flags: Sequence[str]) -> Target:
    """Hold the served model against the floor.

    Args:
        floor: measured in the same run.
        cpu_flags: of the machine; without bf16 instructions there is no verdict.
    """
    ratio = floor.served.median
    passed = ratio <= MAX_FLOOR if BF16_FLAGS & set(cpu_flags) else None
    return Target(f"served / linear layers alone in bf16, 100 pairs: at most {MAX_FLOOR:g}", ratio, passed)


def _tokens(workload: Workload, in_process: InProcess) -> int:
    return sum(in_process.token_counts(workload.query, workload.documents))


def _show(progress: Progress, task: TaskID, step: str) -> None:
    progress.update(task, description=step)


def _next(progress: Progress, task: TaskID, name: str) -> None:
    progress.update(task, description=name, advance=1)


def _watch_memory(served: Contestant, workload: Workload, pid: int, peak: PeakMemory) -> None:
    with watching(pid, peak):
        for _ in range(MEMORY_CALLS):
            served.scores(workload.query, workload.documents)


def _summarise(workload: Workload, rounds: Rounds, in_process: InProcess) -> WorkloadSpeed:
    counts = in_process.token_counts(workload.query, workload.documents)
    return summarise(workload, rounds, token_statistics(workload, counts), ratios=RATIOS)
