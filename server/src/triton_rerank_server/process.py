"""One tritonserver process from start to end: flags, readiness, drain, and what is left behind (nothing)."""

from __future__ import annotations

import logging
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as triton

from triton_rerank import RerankError
from triton_rerank_server.canary import check_canary, read_canaries
from triton_rerank_server.child import Child
from triton_rerank_server.environment import triton_environment
from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.installation import find_installation, lay_out_backends
from triton_rerank_server.ports import resolve_port

_log = logging.getLogger(__name__)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_TAIL_LINES = 25


@dataclass(frozen=True)
class ServerConfig:
    """How to start Triton.

    Attributes:
        model_repository: folder as written by triton-rerank-export.
        address: address that gRPC, HTTP and metrics bind; loopback unless told otherwise.
        grpc_port: 0 means a free one.
        http_port: 0 means a free one.
        metrics_port: 0 means a free one.
        exit_timeout_s: seconds that running requests get to finish on shutdown.
        start_timeout_s: seconds until the canary must have been answered.
        log_file: Triton's output; None keeps it in a temporary file that goes with the server.
        extra_args: passed to tritonserver as they are, last; its folder is a temporary one, so paths must be absolute.
    """

    model_repository: Path
    address: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    exit_timeout_s: int = 30
    start_timeout_s: float = 180.0
    log_file: Path | None = None
    extra_args: tuple[str, ...] = ()


class TritonServer:
    """A running tritonserver; a context manager that returns when the canary was scored in the right order.

    Args:
        config: how to start it.
        on_progress: called with a short text at each step of the start.

    Attributes:
        grpc_port: as bound, also when the config said 0; likewise ``http_port`` and ``metrics_port``.

    Raises:
        ServerStartError: from `start`: no tritonserver, no repository, a port taken, a model that does not load, a
            canary in the wrong order, or the time is up. Nothing is left running.
    """

    def __init__(self, config: ServerConfig, *, on_progress: Callable[[str], None] = _log.info) -> None:
        self.config = config
        self._on_progress = on_progress
        self._child: Child | None = None
        self._shm_prefix = f"triton_rerank_{secrets.token_hex(6)}_"
        self._runtime: Path | None = None
        self.grpc_port = self.http_port = self.metrics_port = 0

    @property
    def grpc_target(self) -> str:
        """``host:port`` for a client on this machine."""
        return f"{_reachable(self.config.address)}:{self.grpc_port}"

    @property
    def pid(self) -> int:
        """Process id of tritonserver; its children are the backends' stubs."""
        return self._running_child().pid

    @property
    def log_file(self) -> Path:
        """Where tritonserver writes."""
        return self.config.log_file or self._runtime_directory() / "triton.log"

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start Triton and wait until it is ready."""
        try:
            self._launch()
            self._wait_until_ready()
        except BaseException:
            self.stop(kill=True)
            raise

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until Triton ends; its exit code, or None if it still runs after ``timeout_s``."""
        return self._running_child().wait(timeout_s)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to tritonserver alone."""
        self._running_child().send_signal(number)

    def log_tail(self) -> str:
        """The last lines of Triton's log, indented, for a message."""
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as exc:
            return f"  (its log cannot be read: {exc})"
        told = [line for line in lines if line.strip() and not line.startswith(("+--", "| "))]  # no tables
        return "\n".join(f"  {line}" for line in told[-_TAIL_LINES:]) or "  (its log is empty)"

    def stop(self, *, kill: bool = False) -> int | None:
        """Let running requests finish, end Triton and remove what it leaves behind; safe to call twice.

        Args:
            kill: do not wait for running requests.

        Returns:
            Triton's exit code, or None if it was not started.
        """
        child, self._child = self._child, None
        try:
            return child.stop(self.config.exit_timeout_s + 10.0, kill=kill) if child else None
        finally:
            for leftover in _SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
                leftover.unlink(missing_ok=True)
            if self._runtime is not None:
                shutil.rmtree(self._runtime, ignore_errors=True)
                self._runtime = None

    def _launch(self) -> None:
        config = self.config
        if not config.model_repository.is_dir():
            raise ServerStartError(f"{config.model_repository}: no such model repository; `make export` builds one")
        self._resolve_ports()
        installation = find_installation()
        self._runtime = Path(tempfile.mkdtemp(prefix="triton-rerank-"))
        backends = lay_out_backends(installation, self._runtime / "backends")
        self._on_progress(f"starting {installation.binary.name}")
        arguments = [str(installation.binary), *self._flags(backends, installation.caches), *config.extra_args]
        environment = triton_environment(installation.libraries)
        self._child = Child(arguments, environment=environment, log_file=self.log_file, folder=self._runtime)

    def _resolve_ports(self) -> None:
        config = self.config
        self.grpc_port = resolve_port("grpc", config.address, config.grpc_port)
        self.http_port = resolve_port("http", config.address, config.http_port, taken=[self.grpc_port])
        taken = [self.grpc_port, self.http_port]
        self.metrics_port = resolve_port("metrics", config.address, config.metrics_port, taken=taken)
        chosen = (self.grpc_port, self.http_port, self.metrics_port)
        if len(set(chosen)) < len(chosen):
            raise ServerStartError(f"grpc, http and metrics ports are {chosen}: they must differ")

    def _flags(self, backends: Path, caches: Path) -> list[str]:
        address = self.config.address
        return [
            f"--model-repository={self.config.model_repository.resolve()}",
            f"--backend-directory={backends}",
            f"--cache-directory={caches}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            "--disable-auto-complete-config",  # the config is complete, and completing starts each backend twice
            *(f"--{service}-address={address}" for service in ("grpc", "http", "metrics")),
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self.http_port}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={self.config.exit_timeout_s}",
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.start_timeout_s
        canaries = read_canaries(self.config.model_repository)
        with triton.InferenceServerClient(self.grpc_target) as client:
            while not _is_ready(client):
                self._check_alive(deadline)
                time.sleep(0.05)
        for canary in canaries:
            self._on_progress(f"canary for {canary.model}")
            try:
                check_canary(self.grpc_target, canary, timeout_s=max(1.0, deadline - time.monotonic()))
            except RerankError as exc:
                raise ServerStartError(f"canary for {canary.model} failed: {exc}\n{self.log_tail()}") from exc
        self._on_progress("ready")

    def _check_alive(self, deadline: float) -> None:
        code = self._running_child().wait(0)
        if code is not None:
            raise ServerStartError(f"tritonserver ended with code {code} while starting:\n{self.log_tail()}")
        if time.monotonic() > deadline:
            raise ServerStartError(
                f"tritonserver was not ready after {self.config.start_timeout_s:g} s; raise --start-timeout-s, or see "
                f"its log:\n{self.log_tail()}"
            )

    def _running_child(self) -> Child:
        if self._child is None:
            raise ServerStartError("the server is not running; call start() first")
        return self._child

    def _runtime_directory(self) -> Path:
        if self._runtime is None:
            raise ServerStartError("the server is not running, so it has no log file of its own")
        return self._runtime


def _is_ready(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready(client_timeout=2.0))
    except triton.InferenceServerException:  # nobody listens yet
        return False


def _reachable(address: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, address)  # noqa: S104 - compared, not bound
