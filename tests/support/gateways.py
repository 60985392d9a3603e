"""Gateways on free ports: in this process, in an event loop of their own thread, or as the command."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import uvloop
from support.tritons import NAME

from triton_rerank import AsyncRerankClient, Scorer
from triton_rerank.testing import FakeScorer
from triton_rerank_gateway import Gateway, Settings
from triton_rerank_gateway.admission.keys import Key, Keys
from triton_rerank_gateway.http.serving import Loop, make_server
from triton_rerank_gateway.models.models import Canary, Model, Models

QUERY = "cats sleep"
DOCUMENTS = ["a dog barks", "cats sleep", "cats run"]  # best first: 1, 2, 0, by shared words
CANARY = Canary(QUERY, "cats sleep", "a dog")


@dataclass
class Running:
    """A gateway that answers."""

    gateway: Gateway
    server: uvicorn.Server
    port: int
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Mapping[str, Any], **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def raw(self, request: bytes, *, until_closed: bool = True) -> bytes:
        """Send bytes, and read until the gateway closes the connection or a second passes without any."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            found = b""
            if not until_closed:
                connection.settimeout(1)
            with contextlib.suppress(TimeoutError):
                while chunk := connection.recv(65536):
                    found += chunk
        return found


def fake(**options: Any) -> FakeScorer:
    return FakeScorer(**{"model": "fake-model", "name": "fake", "activation": "sigmoid", **options})


def model(scorer: Scorer, name: str = "fake-model", **options: Any) -> Model:
    return Model(name, AsyncRerankClient(scorer=scorer), **{"canary": CANARY, **options})


@contextlib.contextmanager
def running(
    settings: Settings | None = None, models: Models | Scorer | None = None, keys: list[Key] | None = None
) -> Iterator[Running]:
    """A gateway over models, one scorer, or what the settings say; it is drained at the end."""
    settings = settings or Settings(port=0)
    if models is not None and not isinstance(models, Models):
        models = Models([model(models)])
    gateway = Gateway(settings, models, Keys(keys) if keys is not None else None)
    server = make_server(gateway)
    loop_factory = partial(Loop, settings.head_timeout_s)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve(), loop_factory=loop_factory), daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield Running(gateway, server, port, http)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until it comes true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


@contextlib.contextmanager
def process(target: str, *flags: str, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command in a process of its own, listening, and its URL; its log goes to a file."""
    command = [sys.executable, "-m", "triton_rerank_gateway.cli", "--target", target, "--model", NAME, "--port", "0"]
    config = log.with_suffix(".toml")
    config.write_text(f'[[models]]\nname = "{NAME}-public"\nscorer = {{ model = "{NAME}" }}\ncanary = false\n')
    said = log.with_suffix(".out")
    with log.open("wb") as errors, said.open("wb") as output:
        flags = ("--config", str(config), "--default-model", f"{NAME}-public", *flags)
        child = subprocess.Popen([*command, *flags], stdout=output, stderr=errors)
        try:
            wait_for(lambda: "http://" in said.read_text() or child.poll() is not None, 60)
            assert child.poll() is None, log.read_text()
            yield child, "http://" + said.read_text().split("http://")[1].split()[0]
        finally:
            child.kill()
            child.wait(30)
