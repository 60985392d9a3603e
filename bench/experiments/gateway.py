"""`make perf-gateway`: what HTTP costs over the client, and how it stands beside Infinity's own server.

    python -m bench.experiments.gateway --model-repository model_repository --checkpoint .cache/checkpoint

The gateway is asked as its users ask it, by the command, with its log on. Everything is measured in one run on one
Triton: turns of the client and of the gateway in pairs, then callers that wait for their answers, ours and Infinity's
level by level, each while the other is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from rich.console import Console

from bench.experiments.http_calls import HttpCalls
from bench.experiments.stand_in import stand_in
from triton_rerank import InferenceError, RerankClient
from triton_rerank_bench import cli, workloads
from triton_rerank_bench.compare.catalogue import INFINITY, PEERS
from triton_rerank_bench.compare.command import add_environments
from triton_rerank_bench.compare.contestants import CALL_TIMEOUT_S, Served, n_threads
from triton_rerank_bench.compare.folders import ModelFolders
from triton_rerank_bench.compare.process import environment
from triton_rerank_bench.compare.race import Ratio, added_ms, ratio, run_rounds
from triton_rerank_bench.compare.worker import infinity_server
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.generator import Latency, latency, per_second
from triton_rerank_bench.load.loops import Answer, Window, closed_loop
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.options import add_checkpoint, add_common, add_model, number, positive
from triton_rerank_bench.progress import OnStep, showing_time_left
from triton_rerank_bench.report import Json, Report, Table, target
from triton_rerank_bench.served import read_model, serve
from triton_rerank_bench.workloads import Workload

GATEWAY, PEER = "gateway", "Infinity torch"
CALLERS = (1, 8, 32)
NAMES = ("passages", "single")
MOST_RATIO = 1.05  # seconds through the gateway over those through the client, 100 passages
MOST_ADDED_MS = 1.5  # for one pair
LEAST_PAIRS = 1.5  # pairs a second over Infinity's
MOST_OFF = 0.02  # of two scores of a document: int8's own spread
# 32 callers of 100 pairs wait for minutes on a small machine; nobody is refused, and Triton's own queue stays short.
WAITING = ("--timeout-s=600", "--max-timeout-s=600", "--max-wait-s=600", "--pairs-in-flight=400")
_NAME = "m"  # of the model, to both
_OVER = {
    "server": "server", "workload": "workload", "client s": "client_s:.4f", "gateway s": "gateway_s:.4f",
    "added ms": "added_ms:.2f", "ratio": "ratio:.3f",
}  # fmt: skip
_LEVELS = {
    "workload": "workload", "callers": "callers", "server": "server", "calls": "calls", "errors": "errors",
    "pairs/s": "pairs_per_s:,.1f", "p50 ms": "latency.p50_ms:,.1f", "p99 ms": "latency.p99_ms:,.1f",
}  # fmt: skip
_SECONDS_TO_END = 60.0


@dataclass(frozen=True)
class Over:
    """The gateway over the client: seconds, paired within rounds; the difference in milliseconds.

    Behind the stand-in, which answers at once, the difference is precise; a real Triton's own time varies by more.
    """

    server: Literal["Triton", "stand-in"]
    workload: str
    client_s: float
    gateway_s: float
    ratio: Ratio
    added_ms: float


@dataclass(frozen=True)
class Level:
    """One server under so many callers who wait for their answers."""

    server: str
    workload: str
    callers: int
    calls: int
    errors: int
    pairs_per_s: float
    latency: Latency


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    add_model(parser)
    add_checkpoint(parser)
    add_environments(parser)
    parser.add_argument("--workload", nargs="+", choices=NAMES, default=NAMES, help="default both")
    parser.add_argument(
        "--callers", nargs="+", type=positive, default=CALLERS, metavar="N", help="who wait (default 1 8 32)"
    )
    parser.add_argument("--rounds", type=positive, default=15, help="of the turns (default %(default)s)")
    parser.add_argument("--duration", type=number, default=8.0, help="seconds a level (default %(default)s)")
    add_common(parser)


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Measure and print.

    Returns:
        The report as plain data, and 0, or 130 if the user interrupted it; it has the levels that had ended then.

    Raises:
        BenchError: the model or the gateway cannot be measured.
        ServerStartError: Triton did not start.
    """
    files = read_model(options.model_repository, options.model)
    threads, load = n_threads(files), OtherLoad()
    texts = [workloads.BY_NAME[name](options.seed)[0] for name in options.workload]
    with (
        showing_time_left() as on_step,
        serve(options.model_repository, files.info.name, on_progress=on_step) as served,
        gateway(served.target, files.info.name) as port,
        load,
    ):
        over = measure_over("Triton", served.client, port, texts, rounds=options.rounds, seed=options.seed)
        over += _over_stand_in(options, files.info.name, texts)
        servers, not_measured = {GATEWAY: port}, None
        try:
            servers[PEER] = _infinity(options, files.info.max_length, threads, on_step)
        except (BenchError, RuntimeError, OSError) as exc:
            not_measured = f"{PEER}: {exc}"
        levels, interrupted = [], False
        try:
            for level in measure_levels(servers, texts, options.callers, options.duration, on_step):
                levels.append(level)
        except KeyboardInterrupt:
            interrupted = True
    info, version = files.info, served.triton_version
    parts: list[str | Table] = [
        f"{info.name} {info.precision}, Triton {version}, {threads} threads",
        Table("one caller", _OVER, over),
        Table("callers who wait", _LEVELS, levels),
        *([f"not measured: {not_measured}"] if not_measured else []),
    ]
    figures: Json = {"model": info.name, "precision": info.precision, "n_threads": threads}
    figures |= {"over": over, "levels": levels, "not_measured": not_measured}
    settings: Json = {"seed": options.seed, "rounds": options.rounds, "duration_s": options.duration}
    about = {"targets": judge(over, levels), "other_load": load.share(), "interrupted": interrupted}
    return Report("gateway", version, settings, figures, parts, **about).finish(options, console)  # type: ignore[arg-type]


@contextmanager
def gateway(target: str, model: str) -> Iterator[int]:
    """The port of a gateway in front of a running Triton; raises BenchError where it does not start."""
    command = [sys.executable, "-m", "triton_rerank_gateway.cli", "--target", target, "--model", model, "--port", "0"]
    flags = (*WAITING, f"--alias={_NAME}={model}")
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().decode()  # empty if it ended
            if "http://" not in said:
                raise BenchError(f"the gateway did not start ({' '.join(command)}); run that to see why")
            yield int(said.partition("http://")[2].split()[0].rpartition(":")[2])
        finally:
            process.terminate()
            process.wait(_SECONDS_TO_END)


class OverHttp:
    """A server on 127.0.0.1 that is asked one call after the other."""

    name = GATEWAY

    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._calls = HttpCalls(port)

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """In the caller's order; raises BenchError where it refused."""
        content = _body(query, documents)
        reply = self._loop.run_until_complete(asyncio.wait_for(self._calls.post("/rerank", content), CALL_TIMEOUT_S))
        if reply.status != HTTPStatus.OK:
            raise BenchError(f"the gateway answered {reply.status}: {reply.body.decode():.200}")
        scores = [0.0] * len(documents)
        for row in json.loads(reply.body)["results"]:
            scores[row["index"]] = row["relevance_score"]
        return scores

    def close(self) -> None:
        """Close its connection."""
        self._calls.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


def _over_stand_in(options: argparse.Namespace, model: str, texts: Sequence[Workload]) -> list[Over]:
    with (
        stand_in(options.model_repository) as target,
        gateway(target, model) as port,
        RerankClient(target, model=model, timeout_s=CALL_TIMEOUT_S) as client,
    ):
        return measure_over("stand-in", client, port, texts, rounds=options.rounds, seed=options.seed)


def measure_over(
    server: Literal["Triton", "stand-in"],
    rerank_client: RerankClient,
    port: int,
    texts: Sequence[Workload],
    *,
    rounds: int,
    seed: int,
) -> list[Over]:
    """Turns of both, in seeded order within each round.

    Raises:
        BenchError: they do not give the same scores.
    """
    client = Served(rerank_client)
    with closing(OverHttp(port)) as http:
        found = run_rounds([client, http], texts, n_rounds=rounds, seed=seed, during=OtherLoad())
    rows = []
    for text in texts:
        seconds, scores = found.seconds[text.name], found.scores[text.name]
        off = max(abs(a - b) for a, b in zip(scores[client.name], scores[GATEWAY], strict=True))
        if off > MOST_OFF:
            raise BenchError(f"{text.name}: the gateway's scores are not the client's")
        middle = {name: statistics.median(each) for name, each in seconds.items()}
        both = ratio(GATEWAY, client.name, seconds)
        added = added_ms(GATEWAY, client.name, seconds)
        rows.append(Over(server, text.name, middle[client.name], middle[GATEWAY], both, added))
    return rows


def measure_levels(
    servers: dict[str, int], texts: Sequence[Workload], callers: Sequence[int], duration_s: float, on_step: OnStep
) -> Iterator[Level]:
    """Every number of callers with every workload, the servers by turns."""
    for text in texts:
        for n_callers in callers:
            for server, port in servers.items():
                on_step(f"{server}, {text.name}, {n_callers} callers")
                yield asyncio.run(_level(server, port, text, n_callers, duration_s))


async def _level(server: str, port: int, text: Workload, callers: int, duration_s: float) -> Level:
    calls, content = HttpCalls(port), _body(text.query, text.documents)

    async def ask(_: int) -> Answer:
        """Send the list once; an answer that is not whole is an error."""
        try:
            reply = await calls.post("/rerank", content)
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise InferenceError(str(exc)) from exc
        if reply.status != HTTPStatus.OK or len(json.loads(reply.body)["results"]) != len(text.documents):
            raise InferenceError(f"status {reply.status}")
        return Answer(len(text.documents), 0, None)

    now_s = time.monotonic()
    window = Window(now_s + duration_s / 4, now_s + duration_s * 1.25)
    by_caller = await closed_loop(ask, callers, window)
    calls.close()
    counted = [sample for samples in by_caller for sample in samples]
    answered = [sample.ended_s - sample.sent_s for sample in counted if sample.answer]
    errors = len(counted) - len(answered)
    return Level(server, text.name, callers, len(counted), errors, per_second(by_caller)[0], latency(answered))


def judge(over: Sequence[Over], levels: Sequence[Level]) -> list[Json]:
    """Hold the figures against the targets."""
    found = []
    for each in over:
        if each.server == "Triton" and each.workload == "single":
            found.append(target("gateway − client, one pair, ms", each.added_ms, at_most=MOST_ADDED_MS))
        elif each.server == "Triton":
            found.append(target("gateway / client, 100 passages, seconds", each.ratio.median, at_most=MOST_RATIO))
    of = {(each.server, each.workload, each.callers): each for each in levels}
    for (server, workload, callers), peer in of.items():
        if server == PEER:
            ours, of_whom = of[GATEWAY, workload, callers], f"{workload}, {callers} callers: gateway / {PEER}"
            found.append(target(f"{of_whom}, pairs/s", ours.pairs_per_s / peer.pairs_per_s, at_least=LEAST_PAIRS))
            found.append(target(f"{of_whom}, p99", ours.latency.p99_ms / peer.latency.p99_ms, at_most=1))
    return found


def _infinity(options: argparse.Namespace, max_length: int, threads: int, on_step: OnStep) -> int:
    """The port of its server, at its default setting; it ends with this process."""
    program = (options.environments / INFINITY / "bin" / "infinity_emb").absolute()
    if not program.exists():
        raise BenchError(f"{program} is not there; `make perf-gateway` installs it")
    (peer,) = [each for each in PEERS if each.name == PEER]
    folders = ModelFolders(
        options.checkpoint, options.cache, options.environments, max_length=max_length, on_step=on_step
    )
    arguments = {"folder": str(folders.get(peer.files)), **peer.settings[0].load}
    on_step(f"starting {PEER}")
    return infinity_server(program, arguments, env=environment(threads))[1]


def _body(query: str, documents: Sequence[str]) -> bytes:
    return json.dumps({"model": _NAME, "query": query, "documents": documents}).encode()


if __name__ == "__main__":
    commands: dict[str, cli.Command] = {"gateway": (add_arguments, run, "HTTP over the client, and beside Infinity's")}
    sys.exit(cli.main(["gateway", *sys.argv[1:]], commands))
