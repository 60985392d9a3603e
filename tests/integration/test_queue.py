"""A queue that is full refuses at once, and a request that waited too long is refused, as config.pbtxt says."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from triton_rerank import OverloadedError, RerankClient
from triton_rerank_server import ServerConfig, TritonServer

DEMO = "minilm-l6-demo"
QUEUE_SIZE = 2
THREADS = 8


@pytest.fixture
def short_queue(model_repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """The demo model, whose encoder lets two requests wait."""
    folder = tmp_path / "model_repository"
    for name in (DEMO, f"{DEMO}-tokenizer", f"{DEMO}-encoder"):
        shutil.copytree(model_repository / name, folder / name)
    path = folder / f"{DEMO}-encoder" / "config.pbtxt"
    config = path.read_text()
    assert "max_queue_size: 128" in config
    path.write_text(config.replace("max_queue_size: 128", f"max_queue_size: {QUEUE_SIZE}"))
    with TritonServer(ServerConfig(folder, grpc_port=0, http_port=0, metrics_port=0)) as server:
        yield server


def test_a_full_queue_refuses_and_the_others_are_answered(short_queue: TritonServer, passages: list[str]) -> None:
    answered, refused = [], []
    documents = [f"{n} {' '.join(passages)}" for n in range(20)]

    def ask() -> None:
        with RerankClient(short_queue.grpc_target, model=DEMO, timeout_s=60.0) as client:
            try:
                answered.append(len(client.score("how to zip a file?", documents)))
            except OverloadedError as exc:
                refused.append(str(exc))

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(answered) + len(refused) == THREADS
    assert answered and set(answered) == {len(documents)}
    assert refused and all("queue" in message for message in refused)


def test_a_request_that_waited_longer_than_it_asked_for_is_refused(server: TritonServer, passages: list[str]) -> None:
    """The default of 10 s is an upper bound: a request may ask for less."""
    tensors = [triton.InferInput(name, [50, 1], "BYTES") for name in ("query", "document")]
    tensors[0].set_data_from_numpy(np.full((50, 1), b"how to zip a file?", dtype=np.object_))
    tensors[1].set_data_from_numpy(np.full((50, 1), " ".join(passages).encode(), dtype=np.object_))
    found = threading.Event()

    def keep_busy() -> None:
        with triton.InferenceServerClient(server.grpc_target) as client:
            while not found.is_set():
                client.infer(DEMO, tensors, client_timeout=60.0)

    busy = [threading.Thread(target=keep_busy) for _ in range(2)]  # one computes while the other waits
    for thread in busy:
        thread.start()
    try:
        message = first_refusal(server.grpc_target, tensors, timeout_us=1_000)
    finally:
        found.set()
        for thread in busy:
            thread.join(timeout=60)
    assert "Request timeout expired" in message


def first_refusal(target: str, tensors: list[triton.InferInput], *, timeout_us: int) -> str:
    """Ask until one is refused, 30 s at most."""
    deadline = time.monotonic() + 30
    with triton.InferenceServerClient(target) as client:
        while time.monotonic() < deadline:
            try:
                client.infer(DEMO, tensors, timeout=timeout_us, client_timeout=60.0)
            except triton.InferenceServerException as exc:
                return str(exc.message())
    return "never refused"
