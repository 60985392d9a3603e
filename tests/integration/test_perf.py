"""`perf` on real Tritons with the tiny model: a short run to its end, and a real Ctrl-C in the middle of one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

FILES = ["latency-throughput.png", "report.json", "report.md", "throughput-batch.png"]
# As the command's own main does it.
RUN = """
import argparse, sys
from rich.console import Console
from triton_rerank_bench import report
from triton_rerank_bench.tune import command as perf_command
parser = argparse.ArgumentParser()
perf_command.add_arguments(parser)
document, code = perf_command.run(parser.parse_args(), Console(width=120))
print(report.compact(document))
sys.exit(code)
"""


def command(repository: Path, output: Path, *arguments: str) -> list[str]:
    given = ["--model-repository", f"tiny={repository}", "--model", "tiny-bert", "--output", str(output)]
    return [sys.executable, "-c", RUN, *given, "--workload", "single", *arguments]


def tritons(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():  # what a Triton starts has its name until it is another
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
            found += [child] if child.name() == "tritonserver" else []
    return found


@pytest.fixture
def interrupted(tiny_repository: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(tiny_repository, tmp_path / "perf", "--minutes", "1", "--knob", "instances", "--knob", "scheduling"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal makes it
    )
    yield process
    process.kill()
    process.wait()


def test_a_short_run_tries_two_knobs_and_writes_everything(tiny_repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "perf"
    output.mkdir()
    (output / "report.md").write_text("old")
    knobs = ("--knob", "instances", "--knob", "scheduling")
    start = time.monotonic()
    done = subprocess.run(
        command(tiny_repository, output, "--minutes", "1", "--p99-ms", "2000", "--rate", "5000", *knobs),
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 75
    assert sorted(path.name for path in output.iterdir()) == FILES
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads((output / "report.json").read_text(encoding="utf-8"))
    answer = document["answer"]
    assert answer["holds"]
    assert answer["pairs_per_s"] > 10
    rows = document["rows"]
    assert {row["knob"] for row in rows if row["stage"] == "knobs"} == {"instances", "scheduling"}
    assert [row["why"] for row in rows if not row["figures"]] == []  # reasons of failures
    sizes = [row["pairs"] for row in rows if row["stage"] == "sizes"]
    assert sizes == [1, 4, 16, 64, 256][: len(sizes)]  # all, where it has time: test_tuner.py
    assert sizes
    assert next(row["figures"]["mode"] for row in rows if row["stage"] == "open loop") == "open"
    assert document["versions"]["tritonserver"]
    assert any(line.startswith("Machines needed for 5,000 pairs/s: ") for line in document["summary"])
    text = (output / "report.md").read_text(encoding="utf-8")
    assert "with instances 1 -> 2" in text
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith(".png"))


def test_ctrl_c_keeps_what_was_measured(interrupted: subprocess.Popen[str], tmp_path: Path) -> None:
    give_up = time.monotonic() + 120
    while len(tritons(interrupted)) < 2:  # the exported setting's, and that of the first other one
        assert interrupted.poll() is None, interrupted.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.05)
    servers = tritons(interrupted)
    os.killpg(interrupted.pid, signal.SIGINT)
    stdout, stderr = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130, stderr
    assert "Traceback" not in stderr
    document: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    assert document["interrupted"] is True
    assert document["rows"][0]["stage"] == "exported"
    assert document["answer"]["setting"]["instances"] == 1
    output = tmp_path / "perf"
    assert sorted(path.name for path in output.iterdir()) == FILES
    assert "Interrupted: " in (output / "report.md").read_text(encoding="utf-8")
    assert not any(server.is_running() for server in servers)
