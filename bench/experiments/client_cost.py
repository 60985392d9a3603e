"""What does the client add to a raw tritonclient call for 100 documents?

    python -m bench.experiments.client_cost --model-repository model_repository --rounds 100

Two servers answer. The stand-in has no model and answers at once: the difference is the client's, and precise. A real
Triton needs a hundred times the difference, and its own time varies by more; what its statistics say of each call is
therefore taken off before calls are compared. Calls are paired within rounds, in a new seeded order each.
docs/results.md has what came of it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from rich.console import Console
from scipy.stats import quantile_test

from bench.experiments.stand_in import stand_in
from triton_rerank import AsyncRerankClient, RerankClient
from triton_rerank.contract import LOGITS, TOKEN_COUNT, TRUNCATED
from triton_rerank_bench import workloads
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.server import Counts, TritonStatistics, pair_inputs
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.report import Json, Table, others
from triton_rerank_bench.served import CALL_TIMEOUT_S, read_model, serve
from triton_rerank_bench.workloads import Workload

WAYS = ("raw", "client", "raw aio", "client aio")
LETTERS = {"short": 32, "alike": 400}  # of each document; 400 are the mean of the passages
MORE_ON_THE_STAND_IN = 5  # times the rounds of short documents on Triton: they cost nothing
FEWER_LONG = 0.1  # times the same: they cost most
LEAST_ROUNDS = 6  # of five, even least to most holds the median with less than 95 %
COUNTED_S = 5.0  # that Triton's counters may follow its answer by


class Ways:
    """The same call in four ways, each over a connection of its own to one server."""

    def __init__(self, target: str, model: str) -> None:
        self._model = model
        self._raw, self._raw_aio = triton.InferenceServerClient(target), triton_aio.InferenceServerClient(target)
        self._client = RerankClient(target, model=model, timeout_s=CALL_TIMEOUT_S)
        self._client_aio = AsyncRerankClient(target, model=model, timeout_s=CALL_TIMEOUT_S)

    async def call(self, way: str, texts: Workload) -> int:
        """Make the call; returns how many requests it was."""
        if way == "raw":
            return self._decode(self._raw.infer(**self._arguments(texts)))
        if way == "raw aio":
            return self._decode(await self._raw_aio.infer(**self._arguments(texts)))
        if way == "client":
            return self._client.rerank(texts.query, texts.documents).timings.requests
        return (await self._client_aio.rerank(texts.query, texts.documents)).timings.requests

    async def aclose(self) -> None:
        """Close all four connections."""
        self._raw.close()
        self._client.close()
        await self._raw_aio.close()
        await self._client_aio.aclose()

    def _arguments(self, texts: Workload) -> dict[str, Any]:
        outputs = [triton.InferRequestedOutput(name) for name in (LOGITS, TOKEN_COUNT, TRUNCATED)]
        return {"model_name": self._model, "inputs": pair_inputs(texts.query, texts.documents), "outputs": outputs}

    def _decode(self, answer: triton.InferResult) -> int:
        for name in (LOGITS, TOKEN_COUNT, TRUNCATED):
            answer.as_numpy(name)
        return 1


def one_length(name: str, letters: int, seed: int) -> Workload:
    """100 different documents of equal length, which any plan sends in one request."""
    maker = workloads.TextMaker(seed)
    query = maker.words(workloads.QUERY_WORDS // 2)
    documents = (maker.document(letters, query)[:letters] for _ in range(workloads.N_DOCUMENTS))
    return Workload(name, " ".join(query), list(documents), calls=1)


def counted_since(counters: TritonStatistics, before: Counts, requests: int) -> float:
    """Seconds of the server for so many requests, once its counters have them."""
    give_up = time.monotonic() + COUNTED_S
    while (now := counters.read(before))["requests"] < requests and time.monotonic() < give_up:
        time.sleep(0.0005)
    if now["requests"] != requests:
        raise BenchError(f"Triton counted {now['requests']} requests where {requests} were sent")
    return now["seconds"]


async def sample(
    target: str, model: str, texts: Workload, rounds: int, seed: int, *, own_time: bool
) -> tuple[dict[str, list[float]], int]:
    """Milliseconds of each way, one a round, without the server's own where wanted; and the client's requests."""
    ms: dict[str, list[float]] = {way: [] for way in WAYS}
    shuffler = random.Random(seed)  # noqa: S311 - an order, no secret
    warm_up, requests = max(2, rounds // 10), 1
    ways = Ways(target, model)
    with closing(TritonStatistics(target, model)) as counters:
        for number in range(warm_up + rounds):
            for way in shuffler.sample(WAYS, len(WAYS)):
                before = counters.read() if own_time else None
                start = time.perf_counter()
                sent = await ways.call(way, texts)
                seconds = time.perf_counter() - start
                seconds -= counted_since(counters, before, sent) if before else 0.0
                requests = sent if way == "client" else requests
                if number >= warm_up:
                    ms[way].append(1e3 * seconds)
    await ways.aclose()
    return ms, requests


def row(server: str, texts: Workload, ms: dict[str, list[float]], requests: int, raw: str, client: str) -> Json:
    """What a client adds, paired within rounds, with the median's 95 % interval."""
    added = [high - low for high, low in zip(ms[client], ms[raw], strict=True)]
    interval = quantile_test(added, p=0.5).confidence_interval(confidence_level=0.95)
    return {
        "name": f"{server}, {texts.name}",
        "client": client,
        "rounds": len(added),
        "requests": requests,
        "raw_ms": statistics.median(ms[raw]),
        "added_ms": statistics.median(added),
        "low": interval.low,
        "high": interval.high,
    }


def main() -> None:
    """Measure both servers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    model = read_model(options.model_repository, options.model).info.name
    short, alike = (one_length(name, letters, options.seed) for name, letters in LETTERS.items())
    rows: list[Json] = []

    def take(server: str, target: str, texts: Workload, rounds: float, *, own_time: bool = False) -> None:
        """Measure one workload on one server, and keep its rows."""
        counted = max(LEAST_ROUNDS, round(rounds))
        ms, requests = asyncio.run(sample(target, model, texts, counted, options.seed, own_time=own_time))
        rows.extend(row(server, texts, ms, requests, raw, client) for raw, client in (WAYS[:2], WAYS[2:]))

    load = OtherLoad()
    with stand_in(options.model_repository) as target, load:
        for texts in (short, alike):
            take("stand-in", target, texts, options.rounds * MORE_ON_THE_STAND_IN)
    with serve(options.model_repository, model, on_progress=lambda _: None) as server, load:
        take("Triton (net)", server.target, short, options.rounds, own_time=True)
        take("Triton (net)", server.target, alike, options.rounds * FEWER_LONG, own_time=True)
        take("Triton", server.target, workloads.passages(options.seed), options.rounds * FEWER_LONG)
    columns = {
        "server, documents": "name", "caller": "client", "rounds": "rounds", "requests": "requests",
        "raw ms": "raw_ms:.2f", "client − raw, ms": "added_ms:+.3f", "low": "low:+.3f", "high": "high:+.3f",
    }  # fmt: skip
    console = Console(width=110)
    title = "client − raw, paired within rounds: median and its 95 % interval; net: less the server's own time"
    console.print(Table(title, columns, rows).grid())
    console.print(others(load.share()), markup=False)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
