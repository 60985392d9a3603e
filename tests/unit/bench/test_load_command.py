"""The command ``load``: what it refuses before it starts anything, and what its report says."""

from __future__ import annotations

import argparse
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console
from support.toy_collection import QUERIES, write_collection

from triton_rerank import ModelInfo, RerankError
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load import command as load_command
from triton_rerank_bench.load.command import Rate, choose_lists, load_report, parse_concurrency, parse_rates
from triton_rerank_bench.load.generator import Latency, LoadFigures, latency
from triton_rerank_bench.report import Report

CLOSED = LoadFigures(
    workload="passages",
    mode="closed",
    concurrency=4,
    rate=None,
    duration_s=20.0,
    calls=40,
    errors={},
    pairs_per_s=200.0,
    tokens_per_s=18_000.0,
    latency=Latency(2000.0, 2100.0, 2200.0, 2300.0),
    queue_ms=1500.0,
    compute_ms=500.0,
    requests_per_execution=1.5,
    rows_per_execution=150.0,
    padded_over_real=2.75,
    peak_memory_bytes=270_000_000,
    other_load=0.01,
)
OPEN = LoadFigures(
    workload="passages",
    mode="open",
    concurrency=None,
    rate=1.6,
    duration_s=20.0,
    calls=32,
    errors={"OverloadedError": 30, "NotSent": 2},
    pairs_per_s=0.0,
    tokens_per_s=0.0,
    latency=latency([]),
    queue_ms=None,
    compute_ms=None,
    requests_per_execution=None,
    rows_per_execution=None,
    padded_over_real=None,
    peak_memory_bytes=None,
    late=Latency(0.1, 0.2, 0.3, 0.4),
)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    load_command.add_arguments(parser)
    return parser.parse_args(arguments)


def printed(*levels: LoadFigures) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        report(*levels).print(console)
    return captured.get()


def report(*levels: LoadFigures) -> Report:
    info = SimpleNamespace(name="demo", precision="int8", max_length=512)
    return load_report(cast(ModelInfo, info), "2.51.0", levels, {"seed": 1}, interrupted=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], r"the rate is 0: .* above 0"),
        (["--rate=-2"], r"the rate is -2: .* above 0"),
        (["--rate", "nan"], r"the rate is nan: .* above 0"),
        (["--rate", "1,inf"], r"the rate is inf: .* above 0"),
        (["--rate", "fast"], r"--rate fast: 'fast' is not a number; give such as 1.5 or 80%"),
        (["--rate", "0.01"], r"0.01 calls a second gives none in 20 s"),
        (["--rate", "80%"], r"--rate 80%: .* give --concurrency too"),
        (["--rate", "0%", "--concurrency", "1"], r"the rate is 0: .* above 0"),
        (["--concurrency", "0"], r"--concurrency 0: '0' is no number of callers from 1 to 1000"),
        (["--concurrency", "1,1001"], r"--concurrency 1,1001: '1001' is no number of callers"),
        (["--concurrency", "1,,2"], r"--concurrency 1,,2: '' is no number of callers"),
        (["--concurrency", "1.5"], r"'1.5' is no number of callers"),
        (["--data", "absent"], r"--data absent: looked for .*/absent, which is not there; give one of: FOLDER in BEIR"),
        (["--model", "absent"], r"absent/config.pbtxt: no such file; the models of this repository are"),
    ],
)
def test_bad_input_is_told_in_one_line_before_anything_starts(
    arguments: list[str], message: str, tiny_repository: Path
) -> None:
    options = parse("--model-repository", str(tiny_repository), *arguments)
    with pytest.raises((BenchError, RerankError), match=message) as caught:
        load_command.run(options, Console())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "127.0.0.1:9"], r"say by --model"),
        (["--target", "127.0.0.1:9", "--model", "demo"], r"Connection refused"),
        (["--target", "nowhere", "--model", "demo"], r"is not host:port"),
        (["--model-repository", "absent"], r"looked for a built model"),
    ],
)
def test_a_server_that_is_not_there_is_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((BenchError, RerankError), match=message) as caught:
        load_command.run(parse(*arguments), Console())
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""  # no bar of a run that did not start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "pasages"], "invalid choice: 'pasages' (choose from 'passages', 'chunks', 'single', 'mixed'"),
        (["--duration", "0"], "argument --duration: '0' is not a number above 0"),
        (["--duration", "nan"], "'nan' is not a number above 0"),
        (["--warm-up", "-1"], "argument --warm-up: '-1' is not a number from 0"),
        (["--timeout", "0"], "argument --timeout: '0' is not a number above 0"),
    ],
)
def test_what_is_no_value_at_all_is_refused_by_the_parser(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse("--model-repository", ".", *arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert parse("--model-repository", ".", "--warm-up", "0").warm_up == 0.0


def test_rates_are_calls_a_second_or_shares() -> None:
    assert parse_rates("1.5, 80%,50%", 20.0) == (Rate(1.5, False), Rate(0.8, True), Rate(0.5, True))
    assert parse_concurrency("1, 2,16") == (1, 2, 16)


def test_levels_are_those_asked_for_and_both_kinds_by_default() -> None:
    def levels(*arguments: str) -> tuple[int, int]:
        concurrencies, rates = load_command.levels_asked_for(parse("--model-repository", ".", *arguments))
        return len(concurrencies), len(rates)

    assert levels() == (4, 2)
    assert levels("--concurrency", "3") == (1, 0)
    assert levels("--rate", "2,3") == (0, 2)
    assert levels("--rate", "2,50%", "--concurrency", "1,2") == (2, 2)


def test_lists_are_of_the_word_list_or_of_a_collection(tmp_path: Path) -> None:
    generated = choose_lists(["single", "passages"], None, 1)
    assert {name: len(lists[0].documents) for name, lists in generated.items()} == {"single": 1, "passages": 100}
    (real,) = choose_lists(["single"], write_collection(tmp_path / "toy"), 1).values()
    assert real[0].query in QUERIES.values()


def test_tables_say_what_callers_saw_and_what_the_server_did() -> None:
    text = printed(CLOSED)
    callers, server = (re.findall(r"│ (closed, 4 .*) │", text)[i].split("│") for i in (0, 1))
    assert [cell.strip() for cell in callers] == [
        *("closed, 4", "40", "0", "200.0", "18,000", "2,000.0", "2,100.0", "2,200.0", "2,300.0", "–")
    ]
    assert [cell.strip() for cell in server] == ["closed, 4", "1,500.0", "500.0", "1.50", "150.00", "2.75", "270", "1%"]
    assert "do not rely" not in text


def test_errors_a_late_generator_and_a_busy_machine_are_told() -> None:
    text = printed(OPEN)
    assert "open, 1.6/s: 30 of 32 calls failed: OverloadedError" in text
    assert "open, 1.6/s: 2 of 32 calls failed: NotSent" in text
    assert "itself was late" not in text
    slow = LoadFigures(**{**vars(OPEN), "latency": Latency(2.0, 2.0, 2.0, 2.0), "other_load": 0.2})
    text = printed(slow)
    assert "the load generator itself was late by 0.3 ms (p99)" in text
    assert "the machine was busy" in text


def test_json_is_strict_though_nothing_was_answered() -> None:
    document = report(CLOSED, OPEN).json()
    closed, opened = json.loads(json.dumps(document, allow_nan=False))["levels"]
    assert closed["latency"]["p99_ms"] == 2200.0
    assert closed["late"] is None
    assert opened["latency"] == {"p50_ms": None, "p90_ms": None, "p99_ms": None, "max_ms": None}
    assert opened["late"]["max_ms"] == 0.4
    assert (document["kind"], document["model"], document["settings"]) == ("load", "demo", {"seed": 1})
    assert math.isinf(OPEN.latency.p50_ms)
    assert opened["errors"] == {"OverloadedError": 30, "NotSent": 2}
