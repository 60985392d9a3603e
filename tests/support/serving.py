"""``triton-rerank-serve`` as a shell starts it, in an environment of the test's choice."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from support.tritons import NAME

from triton_rerank import RerankClient

FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
_LAST_LINE = "--documents -"  # of what it says when it serves


def script(name: str) -> str:
    """Path of a command of ours."""
    return str(Path(sys.executable).parent / name)


def serve_command(repository: Path, *arguments: str) -> list[str]:
    """The command line, on free ports unless the arguments name others."""
    return [script("triton-rerank-serve"), "--model-repository", str(repository), *FREE_PORTS, *arguments]


@contextlib.contextmanager
def serving(repository: Path, *arguments: str, before: Sequence[str] = (), **settings: Any) -> Iterator[str]:
    """The gRPC target of a server that runs inside the block; it must stop with code 0 at SIGTERM.

    Args:
        repository: to serve.
        arguments: more of them.
        before: a command that becomes the server: ``prlimit``, ``unshare``, ``env`` …
        settings: of `subprocess.Popen`: ``env``, ``cwd`` …
    """
    command = [*before, *serve_command(repository, *arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)
    try:
        said = read_until(process, _LAST_LINE)
        yield said.split("gRPC")[1].split()[0]
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said + rest
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], fragment: str) -> str:
    """What a process says up to the line with the fragment."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if fragment in line:
            return text
    raise AssertionError(f"ended without {fragment!r}: {text}")


@dataclass
class Serving:
    """A running command that a test may harm.

    Attributes:
        process: the command.
        said: what it printed until it was ready.
    """

    process: subprocess.Popen[str]
    said: str

    @property
    def target(self) -> str:
        """``host:port`` of gRPC."""
        return self.said.split("gRPC")[1].split()[0]

    def wait_for_end(self, timeout_s: float) -> str:
        """What it still prints."""
        return self.process.communicate(timeout=timeout_s)[0]

    def family(self) -> list[psutil.Process]:
        """Triton and its stubs."""
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def stub(self, step: str) -> psutil.Process:
        """The process of a step's first instance."""
        return next(child for child in self.family() if any(f"-{step}_0_0" in word for word in child.cmdline()))


def start_serving(repository: Path, *arguments: str) -> Serving:
    """Start it, and wait until it is ready."""
    command = serve_command(repository, *arguments)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Serving(process, read_until(process, _LAST_LINE))


@contextlib.contextmanager
def harmed(repository: Path, *arguments: str) -> Iterator[Serving]:
    """It is ready inside the block, and ends there or at its end, with whatever code."""
    running = start_serving(repository, *arguments)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.communicate(timeout=90)


def answers(target: str, model: str = NAME) -> bool:
    """True if a list is reranked there."""
    with RerankClient(target, model=model, timeout_s=30.0) as client:
        return len(client.rerank("how do I make a file smaller?", ["A file cabinet.", "gzip shrinks files.", ""])) == 3
