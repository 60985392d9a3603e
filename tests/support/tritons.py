"""Real Triton processes that a test may kill, freeze and bring back, and what they say they did."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tritonclient.grpc as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_rerank.contract import CONFIG_FILE, TOKENIZER_SUFFIX
from triton_rerank_server import ServerConfig, TritonServer
from triton_rerank_server.launch.ports import hold_port, port_of

NAME = "tiny-bert"
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


def only_bert(repository: Path, folder: Path) -> Path:
    """A copy of a repository with one model of it: less to load."""
    for source in sorted(repository.glob(f"{NAME}*")):
        shutil.copytree(source, folder / source.name)
    return folder


class ShortLived(TritonServer):
    """One that is killed at the end of its block.

    Told to end, Triton waits for 3 s in steps of one: that is for tests of the end, which call ``stop``.
    """

    def __exit__(self, *_: object) -> None:
        self.stop(kill=True)


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Inside the block nobody else is given them; a server that is told their numbers gets them all the same."""
    with contextlib.ExitStack() as stack:
        yield [port_of(stack.enter_context(hold_port("http", "127.0.0.1", 0))) for _ in range(count)]


@contextlib.contextmanager
def edited(model: Path) -> Iterator[model_config_pb2.ModelConfig]:
    """The config of a model's folder, written back at the end of the block."""
    path = model / CONFIG_FILE
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    yield config
    path.write_text(text_format.MessageToString(config))


def start(
    repository: Path, *arguments: str, address: str = "127.0.0.1", grpc_port: int = 0, connection_age_s: float = 60.0
) -> TritonServer:
    """Not started yet; a context manager."""
    config = ServerConfig(
        repository,
        address=address,
        grpc_port=grpc_port,
        http_port=0,
        metrics_port=0,
        connection_age_s=connection_age_s,
        extra_args=arguments,
    )
    return ShortLived(config)


def again(server: TritonServer) -> TritonServer:
    """A new one on the gRPC port of one that was killed."""
    server.stop(kill=True)
    return ShortLived(dataclasses.replace(server.config, grpc_port=server.grpc_port))


def kill(server: TritonServer) -> None:
    """kill -9 of Triton and of its backends' processes."""
    os.killpg(server.pid, signal.SIGKILL)


@contextlib.contextmanager
def frozen(server: TritonServer) -> Iterator[None]:
    """Triton and its backends stand still inside the block; their connections stay open."""
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def computed(target: str, model: str) -> int:
    """Executions of a model on one server, over all its versions."""
    with triton.InferenceServerClient(target) as client:
        found = client.get_inference_statistics(model, client_timeout=10.0).model_stats
    return sum(int(version.execution_count) for version in found)


def received(target: str, model: str = NAME) -> int:
    """Requests for an ensemble that came to one server: its first step answers each, its queue being unbounded here."""
    with triton.InferenceServerClient(target) as client:
        found = client.get_inference_statistics(model + TOKENIZER_SUFFIX, client_timeout=10.0).model_stats
    return sum(int(version.inference_stats.success.count + version.inference_stats.fail.count) for version in found)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """False if it did not come true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
