"""What does splitting a list into requests do to padding, to Triton's batches and to the time?

    python bench/experiments/splitting.py --model-repository model_repository

The same lists are sent in four ways over one connection, with as many requests under way; only the groups differ.
``plan`` is the client's own; ``ideal`` is the same rule told the true token counts, which the client only estimates;
``sorted`` is ordered by length and cut at max_batch_size; ``naive`` is cut there in the caller's order. Queues are
unbounded, else the client does not split for padding. docs/results.md has what came of it.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore
from typing import Any

import tritonclient.grpc as triton
from rich.console import Console

from triton_rerank.contract import ENCODER_SUFFIX, LOGITS, MAX_REQUEST_BYTES, TOKEN_COUNT
from triton_rerank.triton.plan import BYTES_PER_TOKEN, Limits, plan
from triton_rerank_bench.compare.contestants import token_counts, tokenizer_of
from triton_rerank_bench.compare.race import ratio
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.server import PAIR_OVERHEAD_BYTES, TritonStatistics, pair_inputs
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.report import Json, Table, others
from triton_rerank_bench.served import CALL_TIMEOUT_S, read_model, serve
from triton_rerank_bench.tune.variants import clear_queue_bounds, variant
from triton_rerank_bench.workloads import SPREAD, Workload, lognormal_list

STRATEGIES = ("plan", "ideal", "sorted", "naive")
CALLERS = (1, 8)
CONCURRENCY = 8  # requests of a list under way, TritonOptions' own
MEAN_WORDS = 75
# Name -> documents of each list, and the spread of their lengths. Mixed sizes grow by half, from 10 to 1,000.
SETS = {
    "mixed": ((10, 15, 23, 35, 53, 81, 123, 187, 285, 433, 658, 1000), SPREAD),
    "like": ((100,) * 8, 0.02),
}
STILL_S = 0.1  # that Triton's counters stand still, before all answers are in them

Groups = Sequence[Sequence[int]]  # indexes of the documents of each request


def groups_of(texts: Workload, counts: Sequence[int], limits: Limits) -> dict[str, Groups]:
    """The requests of a list in all four ways."""
    lengths = [len(document.encode()) for document in texts.documents]
    overhead, most = len(texts.query.encode()) + PAIR_OVERHEAD_BYTES, limits.max_batch_size
    return {
        "plan": plan(lengths, overhead=overhead, limits=limits),
        "ideal": plan([int(count * BYTES_PER_TOKEN) for count in counts], overhead=0, limits=limits),
        "sorted": plan(lengths, overhead=overhead, limits=replace(limits, length_ladder=())),
        "naive": [range(start, min(start + most, len(lengths))) for start in range(0, len(lengths), most)],
    }


def padded_tokens(groups: Groups, counts: Sequence[int], ladder: Sequence[int]) -> int:
    """Each request is padded to the first rung that holds its longest pair."""
    longest = [max(counts[index] for index in group) for group in groups]
    rungs = [next(rung for rung in ladder if rung >= most) for most in longest]
    return sum(len(group) * rung for group, rung in zip(groups, rungs, strict=True))


class Sender:
    """Sends the documents of a list in given groups, so many at a time; safe to share between threads."""

    def __init__(self, target: str, model: str) -> None:
        self._client, self._model = triton.InferenceServerClient(target), model

    def send(self, texts: Workload, groups: Groups) -> None:
        """Score all groups; raises BenchError where a request failed."""
        free, answers = Semaphore(CONCURRENCY), SimpleQueue[Any]()

        def done(result: Any, error: Any) -> None:
            """Let the next group go, and keep how this one ended."""
            free.release()
            answers.put(error)

        for group in groups:
            free.acquire()
            self._client.async_infer(
                model_name=self._model,
                inputs=pair_inputs(texts.query, [texts.documents[index] for index in group]),
                callback=done,
                outputs=[triton.InferRequestedOutput(name) for name in (LOGITS, TOKEN_COUNT)],
                client_timeout=CALL_TIMEOUT_S,
            )
        failed = [error for _ in groups if (error := answers.get()) is not None]
        if failed:
            raise BenchError(f"{self._model} did not answer: {failed[0]}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def settled(counters: TritonStatistics) -> Any:
    """The counters, once they have stood still for a moment."""
    counts = counters.read()
    while True:
        time.sleep(STILL_S)
        if (now := counters.read()) == counts:
            return counts
        counts = now


def rows_of(
    name: str,
    callers: int,
    lists: Sequence[tuple[Workload, Sequence[int], dict[str, Groups]]],
    sender: Sender,
    counters: TritonStatistics,
    ladder: Sequence[int],
    options: argparse.Namespace,
) -> list[Json]:
    """One set of lists from some callers at once: each round has one turn of each strategy, in a new order."""
    seconds: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    counts: dict[str, list[Any]] = {strategy: [] for strategy in STRATEGIES}
    shuffler = random.Random(options.seed)  # noqa: S311 - an order, no secret
    for _ in range(options.rounds):
        for strategy in shuffler.sample(STRATEGIES, len(STRATEGIES)):
            before, start = settled(counters), time.perf_counter()
            with ThreadPoolExecutor(callers) as pool:
                sends = [pool.submit(functools.partial(sender.send, texts, g[strategy])) for texts, _, g in lists]
            seconds[strategy].append(time.perf_counter() - start)
            for sent in sends:
                sent.result()
            now = settled(counters)
            counts[strategy].append({name: now[name] - before[name] for name in now})
    tokens = sum(sum(each) for _, each, _ in lists)
    return [
        {
            "lists": name,
            "callers": callers,
            "strategy": strategy,
            "requests": sum(len(groups[strategy]) for _, _, groups in lists),
            "padding": sum(padded_tokens(groups[strategy], each, ladder) for _, each, groups in lists) / tokens,
            "rows": sum(c["inferences"] for c in counts[strategy]) / sum(c["executions"] for c in counts[strategy]),
            "merged": sum(c["requests"] for c in counts[strategy]) / sum(c["executions"] for c in counts[strategy]),
            "seconds": statistics.median(seconds[strategy]),
            "ratio": ratio(strategy, "naive", seconds),
        }
        for strategy in STRATEGIES
    ]


def main() -> None:
    """Measure all sets and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    files = read_model(options.model_repository, options.model)
    name, limits = files.info.name, Limits(files.info.max_batch_size, MAX_REQUEST_BYTES, files.info.length_ladder)
    tokenizer, rows, load = tokenizer_of(files), [], OtherLoad()
    with (
        variant(options.model_repository, name, clear_queue_bounds) as patient,
        serve(patient, name, on_progress=lambda _: None) as server,
        closing(Sender(server.target, name)) as sender,
        closing(TritonStatistics(server.target, name + ENCODER_SUFFIX)) as counters,
        load,
    ):
        for of_name, (sizes, spread) in SETS.items():
            lists = []
            for number, size in enumerate(sizes):
                texts = lognormal_list(f"{size} documents", size, MEAN_WORDS, spread, options.seed + number)
                counts = token_counts(tokenizer, texts.query, texts.documents)
                lists.append((texts, counts, groups_of(texts, counts, limits)))
                sent = server.client.rerank(texts.query, texts.documents).timings.requests
                if sent != len(lists[-1][2]["plan"]):
                    raise BenchError(f"{texts.name}: the client sent {sent} requests, which is not its plan here")
            for callers in CALLERS:
                rows += rows_of(of_name, callers, lists, sender, counters, limits.length_ladder, options)
    columns = {
        "lists": "lists", "callers": "callers", "strategy": "strategy", "requests": "requests",
        "padding": "padding:.3f", "rows/batch": "rows:.1f", "merged": "merged:.2f", "seconds": "seconds:.2f",
        "/ naive": "ratio:.3f",
    }  # fmt: skip
    console = Console(width=110)
    console.print(Table(f"splitting, {options.rounds} rounds", columns, rows).grid())
    console.print(others(load.share()), markup=False)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
