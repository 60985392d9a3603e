"""A backend process dies or hangs: the serve command notices, ends, and costs a client with two servers no call."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.load import Load
from support.serving import Serving, harmed, read_until
from support.tritons import NAME, only_bert, wait_until

from triton_rerank import RerankClient

DOCUMENTS = ["gzip shrinks files", "the cat sat on the mat", "a drawer"]


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_bert(tiny_repository, tmp_path_factory.mktemp("watch") / "model_repository")


@pytest.fixture(scope="module")
def other(repository: Path) -> Iterator[Serving]:
    """The second server of the list; nothing happens to it."""
    with harmed(repository) as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("step", ["tokenizer", "encoder"])
def test_a_backend_process_that_dies_or_hangs_ends_the_server_and_loses_no_call(
    repository: Path, other: Serving, step: str, number: signal.Signals
) -> None:
    with harmed(repository) as one, RerankClient(f"{one.target},{other.target}", model=NAME, timeout_s=20.0) as client:
        family = one.family()
        with Load(lambda _: client.score("how to zip a file", DOCUMENTS), threads=4, pause_s=0.05) as load:
            load.wait_for(40)
            began_s = time.monotonic()
            os.kill(one.stub(step).pid, number)
            text = one.wait_for_end(60)
            took_s = time.monotonic() - began_s
            load.wait_for(40)
    print(f"{step} {number.name}: ended after {took_s:.1f} s; {len(load.samples)} calls")
    assert one.process.returncode == 1
    assert load.errors == []
    assert re.search(f"^triton-rerank-serve: .*{NAME}", text, re.MULTILINE), text
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_a_model_that_was_unloaded_on_purpose_is_no_fault(repository: Path, other: Serving) -> None:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(other.target) as raw:
        raw.unload_model(NAME)
        assert wait_until(lambda: not raw.is_model_ready(NAME), 20)
        time.sleep(6)  # three canaries
        assert other.process.poll() is None
        raw.load_model(NAME)
        assert wait_until(lambda: raw.is_model_ready(NAME), 20)


def test_with_restarts_it_comes_back_on_the_same_port(repository: Path) -> None:
    with harmed(repository, "--restarts", "1") as one, RerankClient(one.target, model=NAME, timeout_s=20.0) as client:
        before = client.score("how to zip a file", DOCUMENTS)
        os.kill(one.stub("encoder").pid, signal.SIGKILL)
        read_until(one.process, "--documents -")
        assert wait_until(client.is_ready, 20)
        assert client.score("how to zip a file", DOCUMENTS) == before
        os.kill(one.stub("tokenizer").pid, signal.SIGKILL)
        one.wait_for_end(60)
    assert one.process.returncode == 1
