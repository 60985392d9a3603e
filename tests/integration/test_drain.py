"""Stops under load: whatever was accepted is answered, also between two steps of an ensemble."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from support.serving import harmed
from support.tritons import NAME, only_bert

STOPS = int(os.environ.get("TRITON_RERANK_STOPS", "3"))
THREADS = 8
REFUSED = ("has no available versions", "failed to connect", "Connection reset", "Socket closed")
DOCUMENT = "a binary heap keeps its largest element at the root " * 10


class RawLoad:
    """Callers without retries, so that whatever a server does to a request is seen."""

    def __init__(self, target: str) -> None:
        self.answered, self.refused = 0, 0
        self.lost: list[str] = []
        self.stopping = threading.Event()
        self._target = target
        self._lock = threading.Lock()
        self._enough = threading.Event()

    def run(self) -> None:
        """Ask until refused after the stop began."""
        with triton.InferenceServerClient(self._target) as client:
            tensors = [triton.InferInput(name, [50, 1], "BYTES") for name in ("query", "document")]
            for tensor, text in zip(tensors, ("how to zip a file", DOCUMENT), strict=True):
                tensor.set_data_from_numpy(np.full((50, 1), text.encode(), dtype=np.object_))
            while self._ask(client, tensors):
                pass

    def _ask(self, client: triton.InferenceServerClient, tensors: list[triton.InferInput]) -> bool:
        try:
            client.infer(NAME, tensors, client_timeout=60.0)
        except triton.InferenceServerException as exc:
            refusal = self.stopping.is_set() and any(fragment in str(exc) for fragment in REFUSED)
            with self._lock:
                self.refused += refusal
                self.lost += [] if refusal and "in ensemble" not in str(exc) else [str(exc)]
            return False
        with self._lock:
            self.answered += 1
            if self.answered >= 2 * THREADS:
                self._enough.set()
        return True

    def wait_until_running(self) -> None:
        assert self._enough.wait(60), self.lost


@contextmanager
def raw_load(target: str) -> Iterator[RawLoad]:
    load = RawLoad(target)
    threads = [threading.Thread(target=load.run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        for thread in threads:
            thread.join(90)


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_bert(tiny_repository, tmp_path_factory.mktemp("drain") / "model_repository")


MODES = {
    "default": (),
    "none": ("--model-control-mode=none",),
    "poll": ("--model-control-mode=poll", "--repository-poll-secs=1"),
    "closed by the caller": ("--model-control-mode=none", "--http-restricted-api=model-repository,health:key=secret"),
}


@pytest.mark.parametrize("mode", MODES)
def test_stops_under_load_lose_no_request_that_was_accepted(repository: Path, mode: str) -> None:
    """SIGTERM to the command, so many times as TRITON_RERANK_STOPS says; 3 unless it is set."""
    arguments = ("--", *MODES[mode]) if MODES[mode] else ()
    answered = 0
    for number in range(STOPS):
        with harmed(repository, *arguments) as server, raw_load(server.target) as load:
            load.wait_until_running()
            load.stopping.set()
            server.process.terminate()
            text = server.wait_for_end(90)
        assert server.process.returncode == 0, text
        assert load.lost == [], f"stop {number}"
        assert load.refused == THREADS
        answered += load.answered
    print(f"{mode}: {STOPS} stops, {answered} answered, 0 lost")
