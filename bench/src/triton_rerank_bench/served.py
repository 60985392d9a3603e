"""Starts the served model that is measured: a real Triton, reached by the real client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton

from triton_rerank import RerankClient
from triton_rerank_bench.errors import BenchError
from triton_rerank_server import ServerConfig, TritonServer

CALL_TIMEOUT_S = 600.0  # 100 long pairs on a busy core take seconds, not minutes


@dataclass(frozen=True)
class ServedModel:
    """A running server and a client connected to it.

    Attributes:
        client: for one model.
        pid: process id of tritonserver; its children are the backends' stubs.
        triton_version: as the server says.
    """

    client: RerankClient
    pid: int
    triton_version: str


@contextmanager
def serve(model_repository: Path, model: str, *, on_progress: Callable[[str], None]) -> Iterator[ServedModel]:
    """Start Triton on free ports and stop it afterwards.

    Args:
        model_repository: folder that holds the model.
        model: public model name.
        on_progress: called with a short text at each step of the start.

    Raises:
        ServerStartError: Triton did not start.
    """
    config = ServerConfig(model_repository=model_repository, grpc_port=0, http_port=0, metrics_port=0)
    with (
        TritonServer(config, on_progress=on_progress) as server,
        RerankClient(server.grpc_target, model=model, timeout_s=CALL_TIMEOUT_S) as client,
    ):
        yield ServedModel(client, server.pid, triton_version(server.grpc_target))


def triton_version(target: str) -> str:
    """Version that a running Triton states.

    Raises:
        BenchError: it does not answer.
    """
    with triton.InferenceServerClient(target) as client:
        try:
            return str(client.get_server_metadata(client_timeout=10.0).version)
        except triton.InferenceServerException as exc:
            raise BenchError(f"{target}: no Triton answers there ({exc.message()})") from exc
