"""Ways to call `perf` wrong: one line, nothing started, nothing overwritten."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from rich.console import Console

from triton_rerank import RerankError
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.tune import command as perf_command
from triton_rerank_bench.tune import servers as setting_servers
from triton_rerank_bench.tune.knobs import KNOBS


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    perf_command.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a server was started")

    monkeypatch.setattr(setting_servers, "serve", refuse)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0.1"], "--minutes 0.1: nothing can be compared in less than 0.25 minutes"),
        (["--minutes", "5", "--quick"], "--quick takes 3 minutes: give it or --minutes"),
        (["--model", "absent"], "no such file; the models of this repository are"),
        (["--data", "/absent"], "/absent"),
        (["--output", "/proc/perf"], "--output /proc/perf: must be a folder to write to"),
    ],
)
def test_wrong_values_are_told_in_one_line(
    arguments: list[str], message: str, tiny_repository: Path, tmp_path: Path
) -> None:
    given = ["--model-repository", str(tiny_repository), "--model", "tiny-bert", "--output", str(tmp_path / "perf")]
    with pytest.raises((BenchError, RerankError)) as caught:
        perf_command.run(parse(*given, *arguments), Console(quiet=True))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p99-ms", "0"], "argument --p99-ms: '0' is not a number above 0"),
        (["--p99-ms", "nan"], "'nan' is not a number above 0"),
        (["--p99-ms", "-5"], "'-5' is not a number above 0"),
        (["--p99-ms", "fast"], "'fast' is not a number above 0"),
        (["--p99-ms", ""], "'' is not a number above 0"),
        (["--rate", "0"], "argument --rate: '0' is not"),
        (["--rate", "inf"], "'inf' is not a number above 0"),
        (["--minutes", "0"], "argument --minutes: '0' is not"),
        (["--workload", "novels"], "invalid choice: 'novels' (choose from 'passages', "),
        (["--knob", "colour"], "invalid choice: 'colour' (choose from 'instances', "),
    ],
)
def test_what_is_no_value_at_all_is_refused_by_the_parser(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_wrong_repositories_are_told(tiny_repository: Path, tmp_path: Path) -> None:
    tiny = str(tiny_repository)
    for repositories, message in (
        ([], "--model-repository: none is given"),
        ([str(tmp_path / "absent")], "looked for the folder"),
        ([tiny], "say which by --model"),
        ([f"a={tiny}", f"a={tiny}"], "must differ"),
    ):
        given = [word for value in repositories for word in ("--model-repository", value)]
        with pytest.raises(BenchError, match=message):
            perf_command.run(parse(*given, "--output", str(tmp_path / "perf")), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_stays(tiny_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "perf").write_text("mine")
    given = ["--model-repository", str(tiny_repository), "--model", "tiny-bert", "--output", str(tmp_path / "perf")]
    with pytest.raises(BenchError, match="must be a folder to write to"):
        perf_command.run(parse(*given), Console(quiet=True))
    assert (tmp_path / "perf").read_text() == "mine"


def test_knobs_are_all_or_the_given_ones_in_the_order_of_their_promise() -> None:
    assert perf_command.chosen_knobs(parse()) == tuple(KNOBS)
    assert perf_command.chosen_knobs(parse("--knob", "threads", "--knob", "instances")) == ("instances", "threads")
