"""``triton-rerank-bench speed``: served, in process and sentence-transformers in one run, with the server's memory."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from triton_rerank.repository import Artefacts
from triton_rerank_bench import workloads
from triton_rerank_bench.compare.contestants import (
    IN_PROCESS,
    PEER,
    PEER_BATCH_SIZE,
    PEER_SMALL_BATCHES,
    SERVED,
    SMALL_BATCH_SIZE,
    Contestant,
    InProcess,
    Peer,
    Served,
    load_cross_encoder,
    n_threads,
)
from triton_rerank_bench.compare.rounds import Rounds, WorkloadSpeed, run_rounds, summarise, turns
from triton_rerank_bench.machine import OtherLoad, describe_machine
from triton_rerank_bench.memory import PeakMemory, sample, watching
from triton_rerank_bench.options import add_common, positive
from triton_rerank_bench.report import Json, Report, missed, others, target, targets
from triton_rerank_bench.served import name_repositories, read_model, serve
from triton_rerank_bench.workloads import Workload, token_statistics
from triton_rerank_retrieval.eval.progress import bar

RATIOS = ((SERVED, IN_PROCESS), (PEER, SERVED), (PEER_SMALL_BATCHES, SERVED))
MEMORY_CALLS = 5  # untimed calls of the longest workload, watched closely

MAX_OVERHEAD = 1.03  # served over in process, 100 pairs
MAX_SINGLE_MS = 1.5  # served minus in process, one pair
MIN_SPEEDUP = 2.0  # sentence-transformers fp32 over served int8
MAX_MEMORY_MB = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    parser.add_argument("--model-repository", required=True, metavar="PATH", help="serve and time the model in it")
    parser.add_argument("--checkpoint", type=Path, required=True, help="PyTorch folder it was exported from")
    parser.add_argument("--rounds", type=positive, default=7, help="counted rounds (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    add_common(parser, "of the texts and of the turns")


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Time all contestants in one run.

    Returns:
        The report as plain data, and 1 if ``--check`` is given and a target was missed, else 0.

    Raises:
        BenchError: the repository or the checkpoint is not there, or the server ended.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    (folder,) = name_repositories([options.model_repository]).values()
    files = read_model(folder, options.model)
    in_process, load, peak = InProcess(files), OtherLoad(), PeakMemory()
    texts = [workloads.passages(options.seed), workloads.single(options.seed)]
    rounds, version = _time(folder, files, in_process, texts, options, load, peak)
    speeds = [_summarise(workload, rounds, in_process) for workload in texts]
    judged = judge(speeds[0], single_ms(rounds.seconds[texts[1].name]), files.info.precision, peak)
    machine, info, threads = describe_machine(), files.info, n_threads(files)
    named: Json = {"model": info.name, "precision": info.precision, "max_length": info.max_length, "n_threads": threads}
    parts = [
        f"{info.name} {info.precision}, max_length {info.max_length}, Triton {version}; {machine.cpu}, "
        f"{threads} threads each, {options.rounds} rounds",
        others(load.share()),
        *(part for speed in speeds for part in speed.parts()),
        _memory(peak),
        targets(judged),
    ]
    figures: Json = {**named, "n_rounds": options.rounds, "triton_version": version, "other_load": load.share()}
    figures |= {"workloads": speeds, "server_memory": peak, "targets": judged}
    report = Report("speed", version, {"seed": options.seed}, figures, parts)
    report.print(console)
    return report.json(), int(options.check and missed(judged))


def judge(passages: WorkloadSpeed, added_ms: float, precision: str, memory: PeakMemory) -> list[Json]:
    """Hold figures against the targets: of 100 pairs, of one pair's added milliseconds, of the server's memory.

    The speed-up is a target for int8 only.
    """
    ratios = {(ratio.numerator, ratio.denominator): ratio.median for ratio in passages.ratios}
    speedup = "sentence-transformers fp32 / served int8, 100 pairs"
    return [
        target("served / in process, 100 pairs", ratios[SERVED, IN_PROCESS], at_most=MAX_OVERHEAD),
        target("served − in process, one pair, ms", added_ms, at_most=MAX_SINGLE_MS),
        target(speedup, ratios[PEER, SERVED], at_least=MIN_SPEEDUP, judged=precision == "int8"),
        target("peak server memory, MB", memory.pss_bytes / 1e6, at_most=MAX_MEMORY_MB),
    ]


def single_ms(seconds: Mapping[str, Sequence[float]]) -> float:
    """Served minus in process, paired within rounds, milliseconds."""
    return statistics.median(1e3 * (a - b) for a, b in zip(seconds[SERVED], seconds[IN_PROCESS], strict=True))


def _time(
    folder: Path,
    files: Artefacts,
    in_process: InProcess,
    texts: Sequence[Workload],
    options: argparse.Namespace,
    load: OtherLoad,
    peak: PeakMemory,
) -> tuple[Rounds, str]:
    """The rounds, and Triton's version."""
    with bar() as progress:
        task = progress.add_task("loading sentence-transformers", total=turns(4, len(texts), options.rounds))
        predict = load_cross_encoder(options.checkpoint, max_length=files.info.max_length, n_threads=n_threads(files))
        with serve(folder, files.info.name, on_progress=lambda step: progress.update(task, description=step)) as server:

            def on_turn(name: str) -> None:
                """Sample the server's memory and tell whose turn it is."""
                peak.take(sample(server.pid))  # here, where nothing is timed
                progress.update(task, description=name, advance=1)

            served = Served(server.client)
            contestants: list[Contestant] = [
                served,
                in_process,
                Peer(predict, name=PEER, batch_size=PEER_BATCH_SIZE),
                Peer(predict, name=PEER_SMALL_BATCHES, batch_size=SMALL_BATCH_SIZE),
            ]
            rounds = run_rounds(
                contestants, texts, n_rounds=options.rounds, seed=options.seed, on_call=on_turn, during=load
            )
            with watching(server.pid, peak):
                for _ in range(MEMORY_CALLS):
                    served.scores(texts[0].query, texts[0].documents)
            return rounds, server.triton_version


def _summarise(workload: Workload, rounds: Rounds, in_process: InProcess) -> WorkloadSpeed:
    counts = in_process.token_counts(workload.query, workload.documents)
    return summarise(workload, rounds, token_statistics(workload, counts), ratios=RATIOS)


def _memory(peak: PeakMemory) -> str:
    parts = ", ".join(f"{process.name} {process.pss_bytes / 1e6:.0f}" for process in peak.processes)
    return (
        f"Peak server memory: {peak.pss_bytes / 1e6:.0f} MB = {parts}; sum of PSS (shared pages counted once) of "
        f"tritonserver and its children, largest of {peak.samples} samples"
    )
