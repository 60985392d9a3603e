"""What the client adds to a raw call: the arithmetic, the stand-in server, and the command on a tiny model."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton

from triton_rerank import RerankClient
from triton_rerank_bench.cli import main
from triton_rerank_bench.client_cost import (
    LETTERS,
    MAX_ADDED_MS,
    STAND_IN,
    TRITON,
    Cost,
    Samples,
    Spread,
    judge,
    one_length,
    spread,
    summarise,
)
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.raw import pair_inputs
from triton_rerank_bench.stand_in import stand_in
from triton_rerank_bench.triton_statistics import Counts, TritonStatistics
from triton_rerank_bench.ways import PAIRED, WAYS, Ways
from triton_rerank_server import TritonServer


def flat(median: float, low: float, high: float) -> Spread:
    return Spread(median, low, high, median, median, low, high)


def cost(added: Spread, *, server: str = STAND_IN, requests: int = 1, outside: Spread | None = None) -> Cost:
    return Cost(server, "short", "client", 9, requests, 1.0, 1.3, added, outside)


def test_differences_are_paired_within_rounds() -> None:
    # A slow round slows both: of unpaired medians the difference would be 0.
    seconds = {"raw": [1.0, 8.0, 2.0], "client": [1.5, 8.5, 2.5], "raw aio": [1.0] * 3, "client aio": [1.25] * 3}
    samples = Samples(total_s={way: seconds[way] for way in WAYS}, requests=dict.fromkeys(WAYS, 1))
    blocking, awaited = summarise(STAND_IN, one_length("short", 32, 1), samples)
    assert (blocking.client, blocking.added.median, blocking.added.min, blocking.added.max) == (
        *("client", 500.0, 500.0, 500.0),
    )
    assert (awaited.client, awaited.added.median) == ("client aio", 250.0)
    assert blocking.added_outside is None
    assert (blocking.raw_ms, blocking.client_ms, blocking.n_rounds) == (2000.0, 2500.0, 3)


def test_the_servers_own_time_is_taken_off_call_by_call() -> None:
    samples = Samples(requests=dict.fromkeys(WAYS, 1))
    for raw, client in PAIRED:
        samples.total_s[raw], samples.server_s[raw] = [5.0, 9.0, 7.0], [4.0, 8.0, 6.0]
        samples.total_s[client], samples.server_s[client] = [9.25, 4.25, 6.25], [8.0, 3.0, 5.0]
    for measured in summarise(TRITON, one_length("short", 32, 1), samples):
        assert measured.added_outside is not None
        assert measured.added_outside.median == measured.added_outside.max == 250.0
        assert measured.added.max == 4250.0


def test_spread_holds_the_median_and_its_interval_within_the_quartiles_of_many_rounds() -> None:
    told = spread([float(value) for value in range(101)])
    assert (told.min, told.quartile_1, told.median, told.quartile_3, told.max) == (0.0, 25.0, 50.0, 75.0, 100.0)
    assert (told.low, told.high) == (40.0, 60.0)  # 50.5 - 0.98 * sqrt(101), and as far from the other end
    few = spread([3.0, 1.0, 2.0])
    assert (few.low, few.high) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("measured", "value", "passed"),
    [
        (cost(flat(0.3, 0.29, 0.3)), 0.3, True),
        (cost(flat(0.31, 0.301, 0.32)), 0.31, False),
        (cost(flat(0.29, 0.28, 0.31)), 0.29, None),  # the interval holds the bound
        (cost(flat(9.0, 5.0, 12.0), server=TRITON, outside=flat(0.2, 0.1, 0.25)), 0.2, True),
    ],
)
def test_targets_are_told_only_where_the_interval_leaves_no_doubt(
    measured: Cost, value: float, passed: bool | None
) -> None:
    (target,) = judge([measured])
    assert (target.value, target.passed) == (value, passed)
    assert f"{MAX_ADDED_MS:g}" in target.text


def test_split_lists_and_the_async_client_have_no_target() -> None:
    split = cost(flat(9.0, 8.0, 10.0), server=TRITON, requests=4)
    awaited = Cost(STAND_IN, "short", "client aio", 9, 1, 1.0, 9.0, flat(8.0, 8.0, 8.0), None)
    assert judge([split, awaited]) == []


@pytest.mark.parametrize("name", LETTERS)
def test_documents_are_a_hundred_different_ones_of_one_length(name: str) -> None:
    workload = one_length(name, LETTERS[name], seed=1)
    assert len(set(workload.documents)) == 100
    assert {len(document.encode()) for document in workload.documents} == {LETTERS[name]}
    assert one_length(name, LETTERS[name], seed=1) == workload


def test_stand_in_answers_all_four_ways_and_ends(tiny_repository: Path) -> None:
    workload = one_length("short", 32, 1)

    async def requests(target: str) -> list[int]:
        ways = Ways(target, "tiny-bert")
        counts = [await ways.call(way, workload) for way in WAYS]
        await ways.aclose()
        return counts

    children = set(psutil.Process().children())
    with stand_in(tiny_repository) as target:
        (process,) = set(psutil.Process().children()) - children
        assert asyncio.run(requests(target)) == [1, 1, 1, 1]
        with RerankClient(target, model="tiny-bert") as client:
            result = client.rerank(workload.query, workload.documents)
            assert [ranked.index for ranked in result] != list(range(100))  # there was something to sort
            assert len({ranked.logit for ranked in result}) == 100
    assert not process.is_running()


def test_stand_in_answers_with_the_active_version(two_versions: Path) -> None:
    with stand_in(two_versions) as target, RerankClient(target, model="tiny-bert") as client:
        assert client.rerank("a query", ["a document"]).model_version == client.model_info().version == "2"


def test_stand_in_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_rerank_bench.stand_in.sys.executable", "/bin/false")
    with pytest.raises(BenchError, match="stand-in server did not start"), stand_in(tmp_path):
        pass


def test_stand_in_ends_with_the_process_that_started_it(tiny_repository: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from triton_rerank_bench.stand_in import stand_in\n"
        "with stand_in(Path(sys.argv[1])):\n"
        "    import psutil; print(psutil.Process().children()[0].pid, flush=True); os._exit(1)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tiny_repository)], capture_output=True, text=True, check=False
    )
    pid, give_up = int(told.stdout), time.monotonic() + 20.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_statistics_count_requests_rows_and_time(server: TritonServer) -> None:
    counters = TritonStatistics(server.grpc_target, "tiny-bert-encoder")
    before = counters.read()
    start = time.perf_counter()
    with triton.InferenceServerClient(server.grpc_target) as client:
        for _ in range(2):
            client.infer("tiny-bert", pair_inputs("a query", ["one", "two", "three"]))
    elapsed_s = time.perf_counter() - start
    counts = counters.after(before, 2)
    assert (counts.requests, counts.inferences, counts.executions) == (2, 6, 2)
    assert 0.0 < counts.seconds < elapsed_s
    counters.close()


def test_statistics_that_do_not_add_up_are_told(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton_rerank_bench.triton_statistics._WAIT_S", 0.05)
    counters = TritonStatistics(server.grpc_target, "tiny-xlmr-encoder")
    with pytest.raises(BenchError, match="counted 0 requests to tiny-xlmr-encoder where 1 were sent"):
        counters.after(counters.read(), 1)
    with pytest.raises(BenchError, match="counted 3 requests .* where 1 were sent"):
        counters.after(Counts(counters.read().requests - 3, 0, 0, 0.0), 1)
    counters.close()


def test_command_measures_both_servers_and_prints_json_last(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "client.json"
    command = ["client", "--model-repository", str(tiny_repository), "--model", "tiny-bert", "--rounds", "4"]
    assert main([*command, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert document == json.loads(output.read_text(encoding="utf-8"))
    assert (document["kind"], document["model"], document["precision"]) == ("client", "tiny-bert", "fp32")
    costs = document["costs"]
    assert [(c["server"], c["workload"], c["client"]) for c in costs] == [
        (server, workload, client)
        for server, workload in [
            *((STAND_IN, "short"), (STAND_IN, "alike")),
            *((TRITON, "short"), (TRITON, "alike"), (TRITON, "passages")),
        ]
        for client in ("client", "client aio")
    ]
    assert [c["n_rounds"] for c in costs[::2]] == [20, 20, 6, 6, 6]
    assert [c["added_outside"] is not None for c in costs[::2]] == [False, False, True, True, False]
    assert [c["requests"] for c in costs[:8]] == [1] * 8
    for c in costs:
        assert c["added"]["min"] <= c["added"]["low"] <= c["added"]["median"] <= c["added"]["high"] <= c["added"]["max"]
    assert 0.0 < costs[0]["added"]["median"] < 50.0
    assert len(document["targets"]) == 4
    assert any("without its own time" in line for line in lines)


def test_model_that_takes_fewer_pairs_is_told(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(tiny_repository, tmp_path / "copy"))
    for config in copy.glob("tiny-bert*/config.pbtxt"):
        text = re.sub(r"max_batch_size: \d+", "max_batch_size: 64", config.read_text(encoding="utf-8"))
        config.write_text(text, encoding="utf-8")
    assert main(["client", "--model-repository", str(copy), "--model", "tiny-bert", "--rounds", "1"]) == 2
    captured = capsys.readouterr()
    assert "the client split short: it cannot be held against one raw request" in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_statistics_of_a_model_that_is_not_there_are_told(server: TritonServer) -> None:
    with closing(TritonStatistics(server.grpc_target, "absent")) as counters, pytest.raises(BenchError, match="absent"):
        counters.read()


def test_missing_repository_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "--model-repository", str(tmp_path / "absent")]) == 2
    captured = capsys.readouterr()
    assert "looked for the folder" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
