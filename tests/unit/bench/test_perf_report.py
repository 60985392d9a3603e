"""The report of a tuning run: sentences, files, and that old files stay until all new ones are there."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_bench import EXPORTED, FakeBench, figures, tuner

from triton_rerank_bench import plots
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.generator import LoadFigures
from triton_rerank_bench.report import Report, check_folder, publish
from triton_rerank_bench.tune import answer as sentences
from triton_rerank_bench.tune.answer import Exported, setting_text
from triton_rerank_bench.tune.findings import Answer, Row, Schedule, Tuning, Wanted
from triton_rerank_bench.tune.knobs import UNBOUNDED, Setting
from triton_rerank_bench.tune.report import FILES, REPORT, perf_files, perf_report, tables
from triton_rerank_bench.tune.servers import Level

EXPORTS = {"int8": Exported("int8", "openvino", "model_repository")}


def report_of(tuning: Tuning) -> Report:
    options = argparse.Namespace(workload="passages", seed=1, quick=False)
    return perf_report(tuning, "tiny", EXPORTS, options, "2.51.0", "--- a\n+++ b\n")


def answer_of(tuning: Tuning) -> Answer:
    answer = tuning.answer()
    assert answer is not None
    return answer


def answer_lines(tuning: Tuning) -> list[str]:
    return sentences.answer_lines(tuning, answer_of(tuning))


def machine_lines(tuning: Tuning) -> list[str]:
    return sentences.machine_lines(tuning, answer_of(tuning))


def change_lines(tuning: Tuning, model: str, exported: Mapping[str, Exported]) -> list[str]:
    return sentences.change_lines(answer_of(tuning), model, exported)


def with_open_loops(*loops: LoadFigures) -> Tuning:
    """Of a server with 200 pairs a second, at a bound of 600 ms."""
    tuning = tuned(p99_ms=600, rate=1000)
    tuning.rows = [row for row in tuning.rows if row.stage != "open loop"]
    tuning.rows += [Row("open loop", EXPORTED, each) for each in loops]
    return tuning


def tuned(*knobs: str, p99_ms: float | None = None, rate: float | None = None, factor: float = 1.0) -> Tuning:
    """Two instances are a quarter faster, so is a queue without bounds."""

    def speed(setting: Setting) -> float:
        faster = (setting.instances == 2) + (setting.queue_bounds == UNBOUNDED)
        return 200.0 * factor * 1.25**faster

    search = tuner(FakeBench(speed), *knobs, p99_ms=p99_ms, rate=rate)
    search.run()
    return search.tuning


# --- sentences ----------------------------------------------------------------------------------------------------


def test_the_fastest_setting_is_told_with_its_figures_and_its_confirmation() -> None:
    verdict, confirmed = answer_lines(tuned("instances", p99_ms=1000))
    assert verdict.startswith(
        "Fastest setting that holds a p99 of 1,000 ms: int8 with instances 1 -> 2, threads 0 -> 2: "
        "250.0 pairs/s (22,500 tokens/s) from 1 caller, p50 360 ms, p99 400 ms"
    )
    assert confirmed.startswith("Confirmed in 4 rounds beside the exported setting: 1.250 to 1.250 ×")
    assert "Noise, from 4 measurements of the exported setting: 2.0%" in confirmed


def test_that_no_setting_holds_the_bound_is_told_plainly() -> None:
    tuning = tuned("instances", p99_ms=100, rate=1000)
    assert answer_lines(tuning)[0].startswith(
        "No setting that was tried holds a p99 of 100 ms without errors. The closest is int8 with instances 1 -> 2"
    )
    assert machine_lines(tuning)[0] == (
        "Machines for 1,000 pairs/s: no number of them helps while one call alone misses the bound."
    )


def test_that_nothing_is_better_is_told() -> None:
    told = answer_lines(tuned("max_batch_size"))
    assert told[0].startswith("Fastest setting, with no bound of p99: int8 as exported: 200.0 pairs/s")
    assert told[1].startswith("No other setting (4 were tried) was better by more than the noise.")
    assert answer_lines(tuned())[1].startswith("No other setting was tried")


def test_unbounded_queues_come_with_a_warning() -> None:
    assert answer_lines(tuned("queue_bounds"))[-1].startswith("Without queue bounds an overload is not refused")


def test_machines_come_with_their_arithmetic() -> None:
    machines, at_80 = machine_lines(tuned("instances", rate=1001))
    assert (
        machines == "Machines needed for 1,001 pairs/s: 6 = 1,001 / (250.0 pairs/s of one × 0.8 headroom), rounded up"
    )
    assert at_80.startswith("At 80% of the capacity, calls at random times (2.00 a second, 50 calls): p50")


def test_where_random_arrivals_miss_the_bound_more_machines_are_told() -> None:
    tuning = with_open_loops(figures(160, 900, Level(0, rate=1.6)), figures(120, 590, Level(0, rate=1.2)))
    machines, at_80, at_60 = machine_lines(tuning)
    assert machines.startswith("Machines needed for 1,000 pairs/s: 9 = 1,000 / (200.0 pairs/s of one × 0.6 headroom)")
    assert at_80.endswith("p99 900 ms, beyond the bound")
    assert at_60.endswith("p99 590 ms, within the bound")


def test_where_random_arrivals_always_miss_the_bound_no_number_of_machines_is_promised() -> None:
    tuning = with_open_loops(figures(160, 900, Level(0, rate=1.6)), figures(120, 790, Level(0, rate=1.2)))
    lines = machine_lines(tuning)
    assert lines[0] == (
        "Machines needed for 1,000 pairs/s: more than 9 = 1,000 / (200.0 pairs/s of one × 0.6 headroom), rounded up, "
        "where the bound is still missed"
    )
    assert lines[-1].startswith("No share of the capacity that was tried held the bound")


def test_changes_are_told_where_they_are_made() -> None:
    setting = replace(EXPORTED, instances=2, max_batch_size=64, queue_bounds=UNBOUNDED, split="padding", sub_requests=4)
    assert change_lines(found(setting), "tiny", EXPORTS) == [
        "instances: 1 -> 2",
        "max_batch_size: 256 -> 64",
        "queue_bounds: as exported -> none",
        "split: auto -> padding",
        "sub_requests: default -> 4",
        "in the repository, as a new version: make set MODEL=tiny REPOSITORY=model_repository "
        "ARGS='--instances=2 --max-batch-size=64 --max-queue-size=0 --queue-timeout-us=0'",
        "then, where a server runs: make activate MODEL=tiny REPOSITORY=model_repository TARGET=host:port",
        'in the client: RerankClient(…, options=TritonOptions(split="padding", concurrency=4))',
    ]
    assert setting_text(EXPORTED, EXPORTED) == "int8 as exported"


def found(setting: Setting) -> Tuning:
    exported = replace(EXPORTED, repository=setting.repository)
    rows = [Row("exported", EXPORTED, figures(90, 50, Level(1))), Row("exported", exported, figures(100, 50, Level(1)))]
    rows.append(Row("knobs", setting, figures(120, 40, Level(1)), knob="instances", kept=True))
    return Tuning(Wanted(None, None, ()), Schedule.of(60), 100.0, rows, exported, setting)


def test_the_advice_is_a_command_whatever_is_served_now() -> None:
    assert change_lines(found(EXPORTED), "tiny", EXPORTS) == [
        "Nothing to change: model_repository, which you serve, has this setting."
    ]
    both = {**EXPORTS, "bf16": Exported("bf16", "openvino", ".cache/bf16")}
    put, _ = change_lines(found(replace(EXPORTED, repository="bf16")), "tiny", both)
    assert put == (
        "in the repository, as a new version: make set MODEL=tiny REPOSITORY=model_repository "
        "ARGS='--from .cache/bf16 --replace'"
    )
    assert "Nothing" not in " ".join(change_lines(found(replace(EXPORTED, repository="bf16")), "tiny", both))


# --- files --------------------------------------------------------------------------------------------------------


def test_all_files_are_written_and_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["…", "perf", "--p99-ms", "1000"])
    tuning = tuned("instances", "queue_bounds", p99_ms=1000, rate=1000)
    report = report_of(tuning)
    document = report.json()
    written = publish(tmp_path / "new" / "perf", perf_files(tuning, report))
    assert sorted(path.name for path in (tmp_path / "new" / "perf").iterdir()) == sorted(FILES)
    assert sorted(path.name for path in written) == sorted(FILES)
    line = (tmp_path / "new" / "perf" / "report.json").read_text(encoding="utf-8")
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(json.dumps(document))
    text = (tmp_path / "new" / "perf" / "report.md").read_text(encoding="utf-8")
    for sentence in document["summary"]:  # type: ignore[attr-defined]
        assert f"- {sentence}\n" in text
    for wanted in (
        "```diff\n--- a\n",
        "`triton-rerank-bench perf --p99-ms 1000`",
        "latency-throughput.png",
        "throughput-batch.png",
        "2.51.0",
    ):
        assert wanted in text
    assert "Interrupted" not in text


def test_an_interrupted_report_says_so() -> None:
    tuning = tuned("instances")
    tuning.interrupted = True
    tuning.not_tried = ["threads 1"]
    text = str(perf_files(tuning, report_of(tuning))[REPORT])
    assert "- Interrupted: this is what was measured until then." in text
    assert "Not tried, for want of time: threads 1." in text
    assert report_of(tuning).json()["interrupted"] is True


def test_tables_have_as_many_cells_as_columns() -> None:
    for table in tables(tuned("instances", "queue_bounds", p99_ms=1000)):
        assert {len(row) for row in table.cells()} == {len(table.columns)}, table.title
        assert all(cell for row in table.cells() for cell in row), table.title


def test_latencies_of_calls_that_were_never_answered_are_null_in_json() -> None:
    tuning = tuned()
    tuning.rows.append(Row("exported", EXPORTED, figures(0, math.inf, Level(4), errors={"OverloadedError": 3})))
    document = json.loads(json.dumps(report_of(tuning).json(), allow_nan=False))
    assert document["rows"][-1]["figures"]["latency"]["p99_ms"] is None


# --- the folder ---------------------------------------------------------------------------------------------------


def test_a_failure_leaves_old_files_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        (tmp_path / name).write_text("old")
    tuning = tuned()

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plots, "plot_sizes", fail)
    with pytest.raises(ZeroDivisionError):
        publish(tmp_path, perf_files(tuning, report_of(tuning)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(FILES, "old")


def test_nothing_is_published_while_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        publish(tmp_path, {"b": lambda _: None, "a": "new"})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    publish(tmp_path, {"a": "new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "mine": "mine"}


def test_looking_whether_it_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", ("x",))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full" / "a").mkdir(parents=True)
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/perf")):
        with pytest.raises(BenchError, match="must be a folder to write to"):
            check_folder(bad, ("a",))
    with pytest.raises(BenchError, match="a in it is a folder"):
        check_folder(tmp_path / "full", ("a",))
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a"]


def test_pictures_are_drawn_without_a_display(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    plots.plot_sizes(tuned(), tmp_path / "a.png", "t", "c")
    assert (tmp_path / "a.png").stat().st_size > 1000
