"""A server that answers at once, in a process of its own: what is left of a call's time is the client's.

It speaks Triton's gRPC protocol and has a model's configs, but no model: its answers have the right shapes and dtypes,
and logits that have to be sorted.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from triton_rerank.contract import LOGITS, TOKEN_COUNT, TRUNCATED
from triton_rerank.repository import read_config
from triton_rerank_bench.errors import BenchError

_STRIDE = 37  # coprime to 100: logits are no sorted list


@contextmanager
def stand_in(model_repository: Path) -> Iterator[str]:
    """Start the stand-in on a free port, with the configs of a repository, and stop it afterwards.

    Yields its target, ``host:port``; raises BenchError where it did not start.
    """
    command = [sys.executable, __file__, str(model_repository)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()  # empty if it ended
            if not port.isdecimal():
                raise BenchError(f"the stand-in server did not start ({' '.join(command)}); run that to see why")
            yield f"127.0.0.1:{port}"
        finally:
            process.stdin.close()  # it ends with its input, so it also ends if this process is killed


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Triton's service without models, with the configs of a repository."""

    def __init__(self, model_repository: Path) -> None:
        self._model_repository = model_repository
        self._answer = functools.lru_cache(answer)
        self._version = functools.lru_cache(
            lambda model: str(max(read_config(model_repository, model).version_policy.specific.versions))
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - named by the protocol
        """As many rows as came."""
        return self._answer(request.model_name, request.inputs[0].shape[0], self._version(request.model_name))

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As it stands in config.pbtxt."""
        return service_pb2.ModelConfigResponse(config=read_config(self._model_repository, request.name))


def answer(model: str, n: int, version: str) -> Any:
    """The response to n pairs: finite logits in no order, 16 tokens a pair, nothing truncated."""
    logits = ((np.arange(n) * _STRIDE) % n / 7 - 7).astype(np.float32)
    tensors = [
        (LOGITS, "FP32", logits),
        (TOKEN_COUNT, "INT32", np.full(n, 16, np.int32)),
        (TRUNCATED, "BOOL", np.zeros(n, np.bool_)),
    ]
    response = service_pb2.ModelInferResponse(model_name=model, model_version=version)
    for name, datatype, values in tensors:
        response.outputs.add(name=name, datatype=datatype, shape=[n, 1])
        response.raw_output_contents.append(values.tobytes())
    return response


def main() -> None:
    """Serve until stdin ends; the port goes to stdout."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(StandIn(Path(sys.argv[1])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop(grace=None)


if __name__ == "__main__":
    main()
