"""Questions to Triton's HTTP service, against a server of our own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.launch.ports import resolve_port
from triton_rerank_server.running.canary import Canary, check_canary
from triton_rerank_server.running.control import Control, ControlError

ANSWERS = {
    "/v2/health/ready": (200, ""),
    "/v2/models/m/config": (200, '{"ensemble_scheduling": {}}'),
    "/v2/models/m-encoder/config": (200, "{}"),
    "/v2/models/right/infer": (200, '{"outputs": [{"name": "logits", "data": [2.0, 1.0]}]}'),
    "/v2/models/wrong/infer": (200, '{"outputs": [{"name": "logits", "data": [1.0, 2.0]}]}'),
    "/v2/models/broken/infer": (200, '{"outputs": [{"name": "logits", "data": [NaN, 2.0]}]}'),
    "/v2/models/dead/infer": (500, '{"error": "Stub process is not healthy."}'),
    "/v2/models/odd/infer": (502, "<html>"),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, text = ANSWERS[self.path]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET  # noqa: N815 - its base's name

    def log_message(self, *_: object) -> None:
        pass


def listen(port: int) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@pytest.fixture
def control() -> Iterator[Control]:
    server = listen(0)
    yield Control(f"127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_server_that_comes_up_is_found_ready_by_the_next_question() -> None:
    """However often nobody was there before: nothing waits longer and longer."""
    port = resolve_port("http", "127.0.0.1", 0)
    control = Control(f"127.0.0.1:{port}")
    assert not any(control.is_ready() for _ in range(200))
    server = listen(port)
    try:
        assert control.is_ready()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "grpc_proxy"])
def test_no_proxy_of_the_environment_is_asked(control: Control, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert control.is_ready()


def test_an_ensemble_is_told_from_its_steps(control: Control) -> None:
    assert (control.is_ensemble("m"), control.is_ensemble("m-encoder")) == (True, False)


def test_a_canary_in_the_right_order_is_ready(control: Control) -> None:
    check_canary(control, Canary("right", "q", ["best", "other"]), timeout_s=5.0)


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("broken", 500, "which are no numbers"),
        ("dead", 500, "Stub process is not healthy"),
        ("odd", 502, "<html>"),
    ],
)
def test_an_answer_without_numbers_is_an_error_with_its_reason(
    control: Control, model: str, status: int, message: str
) -> None:
    with pytest.raises(ControlError, match=message) as error:
        check_canary(control, Canary(model, "q", ["best", "other"]), timeout_s=5.0)
    assert error.value.status == status


def test_a_canary_in_another_order_names_both(control: Control) -> None:
    with pytest.raises(ServerStartError, match=r"orders its canary \[1, 0\] instead of \[0, 1\]"):
        check_canary(control, Canary("wrong", "q", ["best", "other"]), timeout_s=5.0)
