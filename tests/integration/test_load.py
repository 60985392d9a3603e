"""The load generator against a real Triton with a tiny model: figures that the server's own counters bear out."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console
from support.load import BusyClock
from support.slow_model import write_slow
from support.tritons import NAME, computed, edited, frozen, kill, only_bert, received, start, wait_until
from tritonclient.utils import InferenceServerException

from triton_rerank import RerankClient, RerankError, TritonOptions
from triton_rerank.contract import ENCODER_SUFFIX, SCHEDULING
from triton_rerank_bench import report
from triton_rerank_bench.compare.contestants import tokenizer_of
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load import command as load_command
from triton_rerank_bench.load.generator import ELSEWHERE, Load, LoadFigures
from triton_rerank_bench.load.server import TritonStatistics
from triton_rerank_bench.served import ServedModel, read_model
from triton_rerank_bench.workloads import BY_NAME, Workload
from triton_rerank_server import TritonServer

PASSAGES = BY_NAME["passages"](1)[:2]
SINGLE = BY_NAME["single"](1)


@pytest.fixture(scope="module")
def triton(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One of our own: what others ask would show in its counters, which tell of executions alone."""
    repository = only_bert(tiny_repository, tmp_path_factory.mktemp("load") / "model_repository")
    with edited(repository / f"{NAME}{ENCODER_SUFFIX}") as config:
        config.parameters.pop(SCHEDULING)
    with start(repository) as server:
        yield server


def reach(server: TritonServer) -> ServedModel:
    return ServedModel(RerankClient(server.grpc_target, model=NAME), server.grpc_target, server.pid, "2.51.0")


@pytest.fixture
def served(triton: TritonServer) -> Iterator[ServedModel]:
    found = reach(triton)
    with found.client:
        yield found


def test_a_closed_loop_answers_all_and_the_servers_counters_agree(triton: TritonServer, served: ServedModel) -> None:
    with closing(Load(served, NAME, PASSAGES, seed=1)) as load:
        before_s, before = time.monotonic(), received(triton.grpc_target)
        figures = load.closed(2, duration_s=2.0, warm_up_s=0.3)
        seconds, on_the_wire = time.monotonic() - before_s, received(triton.grpc_target) - before
    assert (figures.workload, figures.mode, figures.concurrency, figures.rate) == ("passages", "closed", 2, None)
    assert figures.errors == {}
    assert 0 < figures.calls < on_the_wire  # the warm-up's calls are not counted
    assert figures.pairs_per_s > 0.7 * 100 * on_the_wire / seconds  # the time around the level counts there too
    assert figures.pairs_per_s == pytest.approx(100 * figures.calls / figures.duration_s, rel=0.3)
    assert 0 < figures.latency.p50_ms <= figures.latency.p90_ms <= figures.latency.p99_ms <= figures.latency.max_ms
    assert figures.pairs_per_s == pytest.approx(2 * 100 / (figures.latency.p50_ms / 1e3), rel=0.5)  # Little's law
    assert figures.queue_ms is not None
    assert figures.compute_ms is not None
    assert 0 < figures.compute_ms < figures.latency.max_ms
    assert figures.rows_per_execution == pytest.approx(100 * (figures.requests_per_execution or 0))
    assert figures.late is None
    assert figures.peak_memory_bytes is not None
    assert figures.peak_memory_bytes > 10**7


def test_what_tritons_counters_do_not_tell_is_left_out(tiny_repository: Path, tmp_path: Path) -> None:
    """Under continuous scheduling, the default."""
    with start(only_bert(tiny_repository, tmp_path / "model_repository")) as server:
        found = reach(server)
        with found.client, closing(Load(found, NAME, PASSAGES, seed=1)) as load:
            figures = load.closed(1, duration_s=0.5, warm_up_s=0.0)
    assert figures.calls > 0 and figures.errors == {}
    assert (figures.queue_ms, figures.compute_ms, figures.requests_per_execution) == (None, None, None)


def test_counters_hold_requests_rows_and_time(triton: TritonServer, served: ServedModel) -> None:
    with closing(TritonStatistics(triton.grpc_target, NAME + ENCODER_SUFFIX)) as counters:
        before, start = counters.read(), time.perf_counter()
        for _ in range(2):
            served.client.score("a query", ["one", "two", "three"])
        elapsed_s = time.perf_counter() - start
        wait_until(lambda: counters.read(before)["requests"] == 2, 5)  # they follow an answer by a moment
        counts = counters.read(before)
    assert (counts["requests"], counts["inferences"], counts["executions"]) == (2, 6, 2)
    assert 0.0 < counts["seconds"] < elapsed_s


def test_counters_of_a_model_that_is_not_there_are_told(triton: TritonServer) -> None:
    with closing(TritonStatistics(triton.grpc_target, "absent")) as counters, pytest.raises(BenchError, match="absent"):
        counters.read()


def test_padding_is_that_of_the_tensors_that_the_encoder_gets(tiny_repository: Path, served: ServedModel) -> None:
    """Held against the tokenizer's own tensors of short and long documents, in one request."""
    documents = [f"{number} " + "word " * (60 if number % 2 else 1) for number in range(240)]
    mixed = Workload("short and long", "a query", documents, calls=1)
    tensors = tokenizer_of(read_model(tiny_repository, NAME)).encode(mixed.query, documents)
    counts = tensors.token_count[:, 0]
    together = tensors.input_ids.size / counts.sum()
    with closing(Load(served, NAME, [mixed], seed=1)) as load:
        figures = load.closed(1, duration_s=0.3, warm_up_s=0.0)
    assert figures.padded_over_real == pytest.approx(together)
    assert figures.tokens_per_s / figures.pairs_per_s == pytest.approx(counts.sum() / 240)
    with closing(Load(served, NAME, [mixed], seed=1, options=TritonOptions(split="padding"))) as load:
        split = load.closed(1, duration_s=0.3, warm_up_s=0.0)
    assert split.padded_over_real is not None
    assert 1.0 <= split.padded_over_real < together / 1.2


def test_an_open_loop_offers_the_rate_whatever_the_server_does(served: ServedModel, busy: BusyClock) -> None:
    began_s = time.monotonic()
    with closing(Load(served, NAME, SINGLE, seed=1)) as load:
        figures = load.open(40, duration_s=4.0, warm_up_s=0.5)
    assert (figures.mode, figures.rate, figures.concurrency, figures.calls) == ("open", 40, None, 160)
    assert figures.errors == {}
    assert figures.pairs_per_s == pytest.approx(40, abs=6)
    assert figures.late is not None
    assert figures.late.p50_ms < 5 + 1e3 * busy.late_s(began_s, time.monotonic())


def test_one_load_measures_level_after_level(served: ServedModel) -> None:
    with closing(Load(served, NAME, SINGLE, seed=1)) as load:
        first, second = load.closed(1, 0.6, 0.1), load.open(20, 0.6, 0.1)
    assert first.calls > 1
    assert second.calls == 12


def test_a_server_that_stands_still_shows_in_an_open_loop_and_not_in_a_closed_one(
    tiny_repository: Path, tmp_path: Path, busy: BusyClock
) -> None:
    repository = only_bert(tiny_repository, tmp_path)
    with start(repository) as server:  # Triton 2.51 may crash when it is stopped (docs/LOG.md)
        found = reach(server)
        with found.client:
            try:
                closed, opened, late_s = stalled_loops(server, found, busy)
            except (RerankError, InferenceServerException) as exc:
                if server.wait(1.0) is None:
                    raise
                pytest.skip(f"Triton crashed while it was stopped under load ({exc})")
        if server.wait(1.0) is not None:
            pytest.skip("Triton crashed while it was stopped under load")
    assert closed.latency.max_ms > 900
    assert closed.latency.p90_ms < 400  # p99 may be one of Triton 2.51's pauses (docs/LOG.md)
    assert opened.errors == {}
    assert opened.latency.p99_ms > 900
    assert opened.latency.p90_ms > 400
    assert opened.late is not None
    assert opened.late.p90_ms < 50 + 1e3 * late_s  # calls were sent on time while nothing was answered


def stalled_loops(server: TritonServer, served: ServedModel, busy: BusyClock) -> tuple[LoadFigures, LoadFigures, float]:
    """A closed and an open loop, each while the server stands still; seconds the machine was late in the latter."""

    def freeze(asked: int) -> None:
        """Once calls of this loop are answered, and some time after the warm-up, whose calls are not counted."""
        with contextlib.suppress(ProcessLookupError, InferenceServerException):  # it crashed meanwhile
            wait_until(lambda: received(server.grpc_target) > asked + 5, 15)
            time.sleep(0.8)
            with frozen(server):
                time.sleep(1.2)

    def frozen_meanwhile() -> threading.Thread:
        thread = threading.Thread(target=freeze, args=(received(server.grpc_target),))
        thread.start()
        return thread

    with closing(Load(served, NAME, SINGLE, seed=1)) as load:
        thread = frozen_meanwhile()
        closed = load.closed(1, duration_s=3.0, warm_up_s=0.2)
        thread.join()
        thread, began_s = frozen_meanwhile(), time.monotonic()
        opened = load.open(30, duration_s=3.0, warm_up_s=0.2)  # what a quarter of a core can send and receive
        thread.join()
        late_s = busy.late_s(began_s, time.monotonic())
    return closed, opened, late_s


def test_calls_that_a_killed_server_never_answers_are_counted_by_class(tiny_repository: Path, tmp_path: Path) -> None:
    with start(only_bert(tiny_repository, tmp_path)) as server:
        served, asked = reach(server), received(server.grpc_target)

        def kill_midway() -> None:
            """Some 10 calls are the warm-up's."""
            wait_until(lambda: received(server.grpc_target) > asked + 25, 15)
            kill(server)

        with served.client, closing(Load(served, NAME, SINGLE, seed=1, timeout_s=2.0)) as load:
            killer = threading.Thread(target=kill_midway)
            killer.start()
            figures = load.open(50, duration_s=3.0, warm_up_s=0.2)
            killer.join()
    assert figures.calls == 150
    assert 0 < sum(figures.errors.values()) < 150
    assert set(figures.errors) <= {"ServerUnavailableError", "DeadlineExceededError"}
    assert figures.queue_ms is None
    assert figures.latency.p50_ms < 1000


def test_refused_and_late_calls_are_counted_by_class(tiny_repository: Path, tmp_path: Path) -> None:
    """A server that takes 0.2 s a call, and lets two wait, is offered four times what it can do."""
    repository = write_slow(tiny_repository, tmp_path, delay_s=0.2, max_queue_size=2)
    with start(repository) as server:
        served = reach(server)
        with served.client, closing(Load(served, NAME, SINGLE, seed=1, timeout_s=0.45)) as load:
            before = computed(server.grpc_target, NAME + ENCODER_SUFFIX)
            figures = load.open(20, duration_s=2.0, warm_up_s=0.0)
            executions = computed(server.grpc_target, NAME + ENCODER_SUFFIX) - before
    assert figures.calls == 40
    assert set(figures.errors) == {"OverloadedError", "DeadlineExceededError"}
    answered = 40 - sum(figures.errors.values())
    assert 0 < answered <= executions
    assert figures.pairs_per_s < 6
    assert figures.latency.max_ms < 500


def test_a_server_elsewhere_has_no_memory_to_read(triton: TritonServer, served: ServedModel) -> None:
    elsewhere = ServedModel(served.client, served.target, ELSEWHERE, served.triton_version)
    with closing(Load(elsewhere, NAME, SINGLE, seed=1)) as load:
        figures = load.closed(1, 0.3, 0.0)
    assert (figures.peak_memory_bytes, figures.other_load) == (None, None)


def command(*arguments: str) -> tuple[report.Json, int]:
    parser = argparse.ArgumentParser()
    load_command.add_arguments(parser)
    return load_command.run(parser.parse_args(arguments), Console())


def test_the_command_loads_a_server_that_runs_already(triton: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    document, code = command(
        *("--target", triton.grpc_target, "--model", NAME, "--workload", "single", "--workload", "passages"),
        *("--concurrency", "1,2", "--rate", "5,50%", "--duration", "0.6", "--warm-up", "0.1"),
    )
    assert code == 0
    levels = json.loads(report.compact(document))["levels"]
    assert [(level["workload"], level["mode"], level["concurrency"]) for level in levels] == [
        (workload, mode, concurrency)
        for workload in ("single", "passages")
        for mode, concurrency in (("closed", 1), ("closed", 2), ("open", None), ("open", None))
    ]
    for of_name, pairs in ((levels[:4], 1), (levels[4:], 100)):
        best = max(level["pairs_per_s"] for level in of_name[:2])  # a share is one of the best closed loop
        assert of_name[2]["rate"] == 5
        assert of_name[3]["rate"] == pytest.approx(max(best / pairs / 2, 1 / 0.6), rel=0.01)  # a call at least
        assert all(level["errors"] == {} for level in of_name)
    assert document["triton_version"] == "2.51.0"
    assert "what callers saw" in capsys.readouterr().out


def test_the_command_starts_a_server_of_its_own(tiny_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, _ = command(
        *("--model-repository", str(tiny_repository), "--model", NAME, "--workload", "single"),
        *("--concurrency", "1", "--duration", "0.5", "--warm-up", "0.5"),
    )
    (level,) = json.loads(report.compact(document))["levels"]
    assert level["peak_memory_bytes"] > 10**7
    assert 0 <= level["other_load"] <= 1
    assert "single, callers: 1" in capsys.readouterr().err


def read_until(stream: IO[str] | None, words: str) -> None:
    """Read a process's pipe until it said so."""
    assert stream is not None
    seen = b""
    while words.encode() not in seen:
        piece = os.read(stream.fileno(), 4096)
        assert piece, f"ended without {words!r}: {seen.decode()}"
        seen += piece


def test_ctrl_c_keeps_the_levels_that_had_ended(triton: TritonServer, tmp_path: Path) -> None:
    output = tmp_path / "load.json"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "triton_rerank_bench.cli", "load", "--target", triton.grpc_target),
            *("--model", NAME, "--workload", "single", "--concurrency", ",".join(["1", "2"] * 20)),
            *("--duration", "2", "--warm-up", "0.1", "--output", str(output)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"},  # the progress bar, though in a pipe
        start_new_session=True,  # a group of its own, as a terminal makes it
    )
    try:
        read_until(process.stderr, "callers: 2")  # the first level has ended
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    document = json.loads(stdout.splitlines()[-1])
    assert document == json.loads(output.read_text(encoding="utf-8"))
    assert document["interrupted"] is True
    assert 1 <= len(document["levels"]) < 40
    assert all(level["calls"] > 1 and level["errors"] == {} for level in document["levels"])
