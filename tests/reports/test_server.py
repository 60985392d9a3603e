"""Triton: addresses, paths, memory, processors and processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from support.mounts import own_mounts
from support.serving import answers, read_until, script, serve_command, serving
from support.tritons import NAME

from triton_rerank import RerankClient

QUERY = "how do I make a file smaller?"
NOBODY = "http://127.0.0.1:9"  # a proxy that is not there
PROXIES = {
    name: NOBODY for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
}


# --- addresses -------------------------------------------------------------------------------------------------------


def test_a_server_starts_where_proxies_are_set(served: Path) -> None:
    """own: the check of a server's readiness, and its canary, went through http_proxy; see also tests of the client."""
    with serving(served, env={**os.environ, **PROXIES}) as target:
        health = [script("triton-rerank"), "health", "--target", target, "--model", NAME]
        process = subprocess.run(health, capture_output=True, text=True, timeout=60, env={**os.environ, **PROXIES})
    assert (process.returncode, process.stderr) == (0, ""), process.stdout


@pytest.mark.parametrize("address", ["::1", "::", "[::]"])
def test_ipv6_is_bound_and_reached(served: Path, address: str) -> None:
    """triton-inference-server/server#5305, kubeflow/kubeflow#5695: nothing listened where a cluster has IPv6 only."""
    with serving(served, "--address", address) as target:
        assert target.startswith("[::1]:")
        assert answers(target)


# --- paths ---------------------------------------------------------------------------------------------------------


def test_a_path_may_have_spaces(served: Path, tmp_path: Path) -> None:
    """triton-inference-server/python_backend#401, triton-inference-server/python_backend#412: a space in the path of
    the repository, or of the stub, ended the start."""
    repository = shutil.copytree(served, tmp_path / "my models (v2)" / "the models")
    scratch = tmp_path / "scratch space"
    scratch.mkdir()
    with serving(Path(repository), env={**os.environ, "TMPDIR": str(scratch)}) as target:
        assert answers(target)


def test_a_path_may_have_letters_of_any_language(served: Path, tmp_path: Path) -> None:
    """microsoft/onnxruntime-genai#1262, microsoft/WindowsAppSDK#6173, k2-fsa/sherpa-onnx#2473: a model below a folder
    with other letters than ASCII was not found."""
    repository = shutil.copytree(served, tmp_path / "Modelle für Zürich" / "模型")
    with serving(Path(repository), env={**os.environ, "TMPDIR": str(Path(repository).parent)}) as target:
        assert answers(target)


def test_a_link_to_the_repository_will_do(served: Path, tmp_path: Path) -> None:
    """own: a link to the release in use, and links to the models in it."""
    for folder in served.iterdir():
        (tmp_path / folder.name).symlink_to(folder, target_is_directory=True)
    (tmp_path / "current").symlink_to(tmp_path / "release")
    (tmp_path / "release").mkdir()
    for folder in served.iterdir():
        (tmp_path / folder.name).rename(tmp_path / "release" / folder.name)
    with serving(tmp_path / "current") as target:
        assert answers(target)


# --- memory, processors, processes -----------------------------------------------------------------------------------


def test_64_mb_of_shared_memory_are_enough(served: Path) -> None:
    """PaddlePaddle/FastDeploy#1566, SeldonIO/seldon-core#4871: Docker's default of /dev/shm was too small."""
    with (
        serving(served, before=own_mounts("mount -t tmpfs -o size=64m tmpfs /dev/shm")) as target,
        RerankClient(target, model=NAME, timeout_s=60.0) as client,
    ):
        assert len(client.rerank(QUERY, [f"{n} gzip shrinks files" for n in range(2000)])) == 2000


def test_a_process_that_may_use_one_processor_serves_without_complaints(served: Path, tmp_path: Path) -> None:
    """microsoft/onnxruntime#8313, microsoft/onnxruntime#10113: pthread_setaffinity_np failed for processors outside of
    the container's set."""
    one = str(min(os.sched_getaffinity(0)))
    log = tmp_path / "triton.log"
    with serving(served, "--log-file", str(log), before=["taskset", "--cpu-list", one]) as target:
        assert answers(target)
    assert not re.search("affinity", log.read_text(), re.IGNORECASE)


def test_a_killed_backend_ends_the_server_that_cannot_answer(served: Path) -> None:
    """triton-inference-server/server#7230, triton-inference-server/server#5381,
    triton-inference-server/python_backend#431: the out-of-memory killer took a stub, and health stayed 200."""
    with subprocess.Popen(
        serve_command(served), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            read_until(process, "--documents -")
            family = psutil.Process(process.pid).children(recursive=True)
            next(child for child in family if "stub" in child.name()).send_signal(signal.SIGKILL)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1, rest
