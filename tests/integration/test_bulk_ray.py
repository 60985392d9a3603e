"""The same job by Ray Data: a worker and then the driver are killed, and nothing is lost or doubled."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.bulk import audited, parts, rows, run_apart, running, write_collection
from support.tritons import only_bert, start, wait_until

from triton_rerank_server import TritonServer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra triton-rerank-bulk[ray] is not installed"
)

N_PAIRS, BLOCK = 96 * 40, 120
_ACTOR = "ray::MapWorker"


@pytest.fixture(scope="module")
def served(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with start(only_bert(tiny_repository, tmp_path_factory.mktemp("bulk-ray") / "model_repository")) as running:
        yield running


def actors(driver: int) -> list[psutil.Process]:
    """Workers that have a block scorer, among the processes that the driver started."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if any(_ACTOR in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:  # ended meanwhile
            continue
    return found


@pytest.mark.timeout(600)
def test_kill_9_of_a_worker_and_of_the_driver(served: TritonServer, tmp_path: Path) -> None:
    source, output = write_collection(tmp_path / "toy", queries=96), tmp_path / "output"
    arguments = ("--target", served.grpc_target, "--block-pairs", str(BLOCK), "--concurrency", "1")
    with running(source, output, *arguments, "--ray", "local") as job:
        assert wait_until(lambda: len(parts(output)) >= 2 or job.poll() is not None, 240)
        if job.poll() is not None and "no cluster is there" in (said := job.communicate()[1]):
            pytest.skip(f"Ray itself gave up starting a node, as it does after 30 s: {said[-300:]}")
        assert job.poll() is None, job.communicate()
        family = psutil.Process(job.pid).children(recursive=True)
        workers = actors(job.pid)
        assert len(workers) == 2, "two actors, or the job is not spread"
        workers[0].send_signal(signal.SIGKILL)
        before = len(parts(output))
        assert wait_until(lambda: len(parts(output)) >= before + 6, 240), "it goes on by itself"
        job.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=60)
    kept = len(parts(output))
    assert kept < N_PAIRS // BLOCK, "it must be killed before its end"
    done = run_apart(source, output, *arguments, "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert audited(done) == {
        "pairs": N_PAIRS,
        "lost": 0,
        "doubled": 0,
        "foreign": 0,
        "broken": 0,
        "errors": 0,
        "versions": ["1"],
        "clean": True,
    }
    assert f"goes on: {kept * BLOCK:,} of {N_PAIRS:,} pairs are there" in done.stderr
    assert [row["pair"] for row in rows(output)] == list(range(N_PAIRS))
