"""Where it runs: folders, locales, limits, users, clocks, and what other software leaves in the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.serving import answers, read_until, script, serve_command, serving
from support.tritons import NAME, free_ports, start, wait_until

from triton_rerank import RerankClient
from triton_rerank.cache.scorer import CachedScorer
from triton_rerank.testing import FakeScorer

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMANDS = ("triton-rerank", "triton-rerank-serve", "triton-rerank-export", "triton-rerank-bench")


def run(*command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)  # type: ignore[call-overload,no-any-return]


def in_a_deleted_folder(*command: str) -> list[str]:
    return ["sh", "-c", 'gone=$(mktemp -d) && cd "$gone" && rmdir "$gone" && exec "$@"', "sh", *command]


def test_a_server_starts_in_a_folder_that_was_deleted(served: Path) -> None:
    """typesafehub/conductr-cli#502: a command failed with FileNotFoundError where the shell's folder was gone."""
    with serving(served, before=in_a_deleted_folder()) as target:
        assert answers(target)


def test_an_export_in_a_deleted_folder_is_refused_in_one_line(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Azure/azure-cli#12239: the same, with a traceback. Here oneMKL would end the process in the middle."""
    command = [script("triton-rerank-export"), "export", "--model", str(checkpoints[NAME])]
    process = run(*in_a_deleted_folder(*command, "--model-repository", str(tmp_path / "models")))
    assert process.returncode == 1
    shells = "sh: 0: getcwd() failed: No such file or directory\n"  # that runs a command in a path with a space
    ours = "triton-rerank-export: the current folder was deleted; change to one that exists\n"
    assert process.stderr.removeprefix(shells) == ours


def test_a_server_whose_reader_goes_away_goes_on(served: Path, tmp_path: Path) -> None:
    """earendil-works/pi#7860: a program ended with EPIPE when its host closed the pipe of its standard output."""
    log = tmp_path / "errors.txt"
    with (
        free_ports(1) as (port,),
        log.open("w") as errors,
        subprocess.Popen(
            serve_command(served, "--grpc-port", str(port)), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        read_until(process, "starting")
        process.stdout.close()
        try:
            with RerankClient(f"127.0.0.1:{port}", model=NAME) as client:
                assert wait_until(client.is_ready, timeout_s=60)
            assert wait_until(lambda: "standard output cannot be written" in log.read_text(), timeout_s=60)
            assert answers(f"127.0.0.1:{port}")
        finally:
            process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("command", ["triton-rerank-export models", "triton-rerank health --target [::1]:1 --model m"])
def test_an_output_that_is_read_in_part_ends_quietly(command: str) -> None:
    """python/cpython#90650: ``command | head -1`` ended with a BrokenPipeError; a short one only when Python exits."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program, *arguments = command.split()
    with subprocess.Popen(
        [script(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown_in_any_locale(command: str) -> None:
    """peritus/bumpversion#154, nwutils/Web2Executable#184: ``--help`` with an arrow in it was a UnicodeEncodeError."""
    for arguments in ([], ["export"]) if command == "triton-rerank-export" else ([],):
        process = run(script(command), *arguments, "--help", env={**os.environ, **ASCII}, encoding="utf-8")
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.startswith(f"usage: {command}")


def test_an_export_works_without_a_locale_or_says_what_to_set(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """docker-library/python#13: names, files and output were ASCII in a container that sets no locale."""
    checkpoint, repository = shutil.copytree(checkpoints[NAME], tmp_path / "räranker"), tmp_path / "modèles"
    command = [script("triton-rerank-export"), "export", "--model", str(checkpoint), "--name", NAME]
    command += ["--precision", "fp32", "--model-repository", str(repository)]
    refused = run(*command, env={**os.environ, **ASCII}, encoding="utf-8")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.endswith("its name is not UTF-8; rename it, or set LC_ALL=C.UTF-8 if it is\n")
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    unset["OMP_NUM_THREADS"] = "1"  # a tiny model on busy cores
    done = run(*command, env=unset, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert f"version 1 of {NAME} is active" in done.stdout
    assert (repository / NAME / "config.pbtxt").is_file()


def test_commands_work_without_docstrings() -> None:
    """huggingface/transformers#36045: ``python -OO`` strips docstrings, and code that reads them fails."""
    for module in ("triton_rerank.cli", "triton_rerank_server.cli", "triton_rerank_export.cli"):
        process = run(sys.executable, "-OO", "-m", module, "--help")
        assert (process.returncode, process.stderr) == (0, ""), module
    process = run(sys.executable, "-OO", "-m", "triton_rerank.cli", "health", "--model", "m", "--target", "127.0.0.1:1")
    assert process.returncode == 4
    assert "no answer  ServerUnavailableError" in process.stdout


def test_a_module_called_model_does_not_hide_our_backends(served: Path, tmp_path: Path) -> None:
    """triton-inference-server/server#7410: the stub of a backend imports a module ``model``, and found another."""
    (tmp_path / "model.py").write_text("raise SystemExit('not a backend')")
    (tmp_path / "pairs.py").write_text("raise SystemExit('not ours')")
    beside = tmp_path / "beside"
    beside.mkdir()
    python_path = os.pathsep.join([str(tmp_path), str(beside)])
    with serving(served, cwd=tmp_path, env={**os.environ, "PYTHONPATH": python_path}) as target:
        assert answers(target)


def test_a_user_without_a_name_can_serve(served: Path) -> None:
    """llm-d/llm-d-benchmark#1573: ``getpwuid`` raised KeyError under the random user ids of OpenShift."""
    become = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if shutil.which("unshare") is None or run(*become, "true").returncode:
        pytest.skip("unshare cannot make a user namespace here")
    nameless = [*become, "env", "-u", "USER", "-u", "LOGNAME", "HOME=/nonexistent"]
    with serving(served, before=nameless) as target:
        assert answers(target)


def test_others_may_read_what_was_exported(served: Path) -> None:
    """huggingface/huggingface_hub#1215: files that a temporary file became were 0600, whatever the umask."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [served, *served.rglob("*")]:
        asked = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == asked & ~mask, path


def test_two_servers_run_on_one_machine(served: Path) -> None:
    """triton-inference-server/server#5573: a second Triton with Python backends failed beside the first."""
    with start(served) as first, start(served) as second:
        assert answers(first.grpc_target) and answers(second.grpc_target)
        first.stop()
        assert answers(second.grpc_target)


def test_clients_that_come_and_go_leave_no_files_open(served: Path) -> None:
    """triton-inference-server/server#2624, triton-inference-server/server#4880: "too many open files" after a while."""
    with start(served) as server:
        ours, its = psutil.Process(), psutil.Process(server.pid)
        for _ in range(5):
            assert answers(server.grpc_target)
        before = ours.num_fds(), its.num_fds()
        for _ in range(40):
            assert answers(server.grpc_target)
        after = ours.num_fds(), its.num_fds()
    assert after[0] - before[0] < 10 and after[1] - before[1] < 10


def test_a_clock_that_is_set_back_harms_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus/blackbox_exporter#38, Xpra-org/xpra#1470: durations were negative when NTP set the clock back."""
    times = iter(range(2_000_000_000, 0, -3600))  # an hour back at each look
    monkeypatch.setattr("time.time", lambda: float(next(times)))
    scorer = FakeScorer({"a": 1.0, "b": 2.0})
    with RerankClient(scorer=CachedScorer(scorer, ttl_s=60.0), timeout_s=5.0) as client:
        first, second = client.rerank("q", ["a", "b"]), client.rerank("q", ["a", "b"])
    assert 0 <= first.timings.scoring_s <= first.timings.total_s < 5
    assert second.usage.cached_pairs == 2
