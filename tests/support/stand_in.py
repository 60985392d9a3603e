"""A gRPC server that speaks as Triton does, with the faults that a real one cannot be asked for; and a bare socket."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from triton_rerank.contract import LOGITS, TOKEN_COUNT, TRUNCATED

Serve = Callable[[Any, Any], Any]
_LARGEST = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers with logits that fall with the row's number.

    Args:
        repository: whose configs it tells.
        refusals: so many inferences are refused with UNAVAILABLE first.
        extra_bytes: how much larger than it need be an answer is.
        hold: inferences are not answered at all.

    Attributes:
        port: of the address that it is served on; 0 takes a free one.
        gate: where there is one, inferences wait until it is set.
        stop: ends the server at once.
        inferences: that came, refused ones too.
        cancelled: those that ended without an answer.
        request: the last of them.
        headers: of the last call of any kind.
    """

    def __init__(self, repository: Path, *, refusals: int = 0, extra_bytes: int = 0, hold: bool = False) -> None:
        self.inferences = self.cancelled = 0
        self.request: Any = None
        self.headers: dict[str, str] = {}
        self.port = 0
        self.gate: threading.Event | None = None
        self.stop: Callable[[], None] = lambda: None
        self._repository = repository
        self._refusals = refusals
        self._extra_bytes = extra_bytes
        self._hold = hold
        self._lock = threading.Lock()

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.headers = dict(context.invocation_metadata())
        path = self._repository / request.name / "config.pbtxt"
        if not path.exists():
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        text = path.read_text()
        return service_pb2.ModelConfigResponse(config=text_format.Parse(text, model_config_pb2.ModelConfig()))

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._lock:
            self.inferences += 1
            self.request, self.headers = request, dict(context.invocation_metadata())
            refused = self.inferences <= self._refusals
        if refused:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        if self.gate is not None:
            self.gate.wait(30)
        if self._hold:
            over = threading.Event()
            if context.add_callback(over.set):
                over.wait()
            with self._lock:
                self.cancelled += 1
        return _answer(request, self._extra_bytes)


def _answer(request: Any, extra_bytes: int) -> Any:
    n = request.inputs[0].shape[0]
    logits = -np.arange(n, dtype=np.float32)
    response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    _add(response, LOGITS, "FP32", [n, 1], logits.tobytes())
    _add(response, TOKEN_COUNT, "INT32", [n, 1], np.ones(n, np.int32).tobytes())
    _add(response, TRUNCATED, "BOOL", [n, 1], bytes(n))
    if extra_bytes:
        _add(response, "padding", "UINT8", [extra_bytes], bytes(extra_bytes))
    return response


def _add(response: Any, name: str, datatype: str, shape: list[int], raw: bytes) -> None:
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)


@contextlib.contextmanager
def serve(stand_in: StandIn, address: str = "127.0.0.1") -> Iterator[StandIn]:
    """On its port, or a free one, until the block ends."""
    server = grpc.server(ThreadPoolExecutor(32), options=_LARGEST)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    stand_in.port = server.add_insecure_port(f"{address}:{stand_in.port}")
    stand_in.stop = lambda: server.stop(0).wait() and None
    server.start()
    try:
        yield stand_in
    finally:
        server.stop(0).wait()


class DeadSocket:
    """Listens, takes connections and resets each at once; counts them."""

    def __init__(self) -> None:
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DeadSocket:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


class Door:
    """Takes connections to a port of 127.0.0.1, passes their bytes on and counts those that go there.

    Args:
        port: of the server behind it.
        delay_s: seconds before a connection is passed on.
    """

    def __init__(self, port: int, *, delay_s: float = 0.0) -> None:
        self.sent_bytes = 0
        self._target = ("127.0.0.1", port)
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        time.sleep(self._delay_s)
        with near, socket.create_connection(self._target) as far:
            back = threading.Thread(target=pump, args=(far, near, lambda _: None), daemon=True)
            back.start()
            pump(near, far, self._count)
            back.join(timeout=30)

    def _count(self, n_bytes: int) -> None:
        self.sent_bytes += n_bytes


def pump(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
    with contextlib.suppress(OSError):  # either end may go
        while data := source.recv(65536):
            count(len(data))
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)
