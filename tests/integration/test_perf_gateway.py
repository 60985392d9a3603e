"""`make perf-gateway` over a real Triton and the real command; Infinity is left out where it is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.experiments.gateway import GATEWAY, PEER, Level, add_arguments, judge, run
from triton_rerank_bench.cli import main
from triton_rerank_bench.load.generator import Latency

COMMANDS = {"gateway": (add_arguments, run, "")}


def test_the_gateway_is_measured_and_a_peer_that_is_not_there_is_named(
    tiny_repository: Path,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["gateway", "--model-repository", str(tiny_repository), "--model", "tiny-bert", "--rounds", "2"]
    command += ["--checkpoint", str(checkpoints["tiny-bert"]), "--environments", str(tmp_path / "none")]
    assert main([*command, "--cache", str(tmp_path), "--duration", "0.5", "--callers", "1", "2"], COMMANDS) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["kind"], found["model"]) == ("gateway", "tiny-bert")
    assert [(each["server"], each["workload"]) for each in found["over"]] == [
        (server, workload) for server in ("Triton", "stand-in") for workload in ("passages", "single")
    ]
    assert all(each["gateway_s"] > 0 for each in found["over"])
    assert [(each["server"], each["workload"], each["callers"]) for each in found["levels"]] == [
        (GATEWAY, workload, callers) for workload in ("passages", "single") for callers in (1, 2)
    ]
    assert all(each["errors"] == 0 and each["pairs_per_s"] > 0 for each in found["levels"])
    assert found["not_measured"].startswith(f"{PEER}: ") and "make perf-gateway" in found["not_measured"]
    assert [target["passed"] is None for target in found["targets"]] == [False, False]


@pytest.mark.parametrize(("factor", "passed"), [(1.6, True), (1.4, False)])
def test_pairs_and_p99_are_held_against_the_peers_at_the_same_number_of_callers(factor: float, passed: bool) -> None:
    def level(server: str, pairs: float, p99: float) -> Level:
        return Level(server, "single", 8, 100, 0, pairs, Latency(1, 1, p99, p99))

    targets = judge([], [level(GATEWAY, 100 * factor, 10 / factor), level(PEER, 100, 10)])
    assert [target["passed"] for target in targets] == [passed, True]
    assert targets[0]["value"] == pytest.approx(factor)
