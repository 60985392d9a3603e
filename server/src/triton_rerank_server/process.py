"""One tritonserver process from start to end: flags, readiness, drain, and what is left behind (nothing)."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.launch.child import Child
from triton_rerank_server.launch.environment import triton_environment
from triton_rerank_server.launch.installation import find_installation, lay_out_backends
from triton_rerank_server.launch.ports import address_flag, bare_address, hold_port, port_of, reachable
from triton_rerank_server.launch.restriction import headers, restrictions
from triton_rerank_server.launch.runtime import link_repository, make_runtime
from triton_rerank_server.models import POLL, check_repository, control_flags, control_mode, flag_values, idle_gpu
from triton_rerank_server.running.canary import Canary, check_canary, read_canaries
from triton_rerank_server.running.control import Control, ControlError
from triton_rerank_server.running.drain import TakeAway, by_hiding, by_unloading, drain, unload_rest
from triton_rerank_server.running.triton_log import explanation
from triton_rerank_server.running.watch import LOOK_S, Watch
from triton_rerank_server.settings import STANDARD_OUTPUT, ServerConfig, check_settings, whole_flag

_log = logging.getLogger(__name__)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
ENDING_S = 10.0  # that Triton gets to end when no request runs any more
CONNECTION_GRACE_S = 600  # longer than any call: one that runs when its connection is old enough is not cut
_POLL_S = 15  # Triton's own default of --repository-poll-secs
_RECENT_LOOKS = 20  # ten seconds, before what is noticed at the end
_STEPS_S = 5.0  # that the steps get to end before Triton is told to
_FAULTY_DRAIN_S = 2.0  # that the requests of healthy models get when a backend has died


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
        self._shm_prefix = f"triton_rerank_{os.getpid()}_{secrets.token_hex(4)}_"
        self._runtime: Path | None = None
        self._held = ExitStack()  # its ports, until it listens: else another server may be given one meanwhile
        self._control = Control("")
        self._canaries: list[Canary] = []
        self._exit_timeout_s = config.exit_timeout_s
        self._log_was_well = 0  # bytes of the log while nothing was wrong
        self.grpc_port = self.http_port = self.metrics_port = 0

    @property
    def grpc_target(self) -> str:
        """``host:port`` for a client on this machine, IPv6 in brackets."""
        return reachable(bare_address(self.config.address), self.grpc_port)

    @property
    def http_target(self) -> str:
        """Likewise of HTTP."""
        return reachable(self._http_address, self.http_port)

    @property
    def metrics_target(self) -> str:
        """Likewise of metrics."""
        return reachable(bare_address(self.config.address), self.metrics_port)

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

    def watch(self) -> str:
        """Wait until Triton ends, or no longer scores though it runs: a backend that died, hangs, or always fails.

        Returns:
            What happened. A Triton that runs refuses what is new by then, so that clients ask another server; `stop`
            it.
        """
        child = self._running_child()
        sizes = deque([self._log_size()], maxlen=_RECENT_LOOKS)
        watch = Watch(child.pid, self._control, self._canaries, stall_timeout_s=self.config.stall_timeout_s)
        try:
            while (code := child.wait(LOOK_S)) is None:
                sizes.append(self._log_size())
                if fault := watch.look():
                    drain(self._control, self._take_away(), timeout_s=_FAULTY_DRAIN_S)
                    child.stop(ENDING_S, kill=True)  # with a dead backend it would not end by itself
                    return fault
            return f"tritonserver died with code {code}"
        finally:
            self._log_was_well = sizes[0]
            watch.close()

    def _log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.is_file() else 0

    def as_bound(self) -> ServerConfig:
        """The config with the ports that were chosen, to start again on them."""
        ports = {"grpc_port": self.grpc_port, "http_port": self.http_port, "metrics_port": self.metrics_port}
        return replace(self.config, **ports)  # type: ignore[arg-type]

    def explanation(self) -> str:
        """The lines of Triton's log that say what went wrong, indented, for a message."""
        if self.log_file == STANDARD_OUTPUT:
            return "  (its log stands above)"
        try:
            log = self.log_file.read_bytes()
        except OSError as exc:
            return f"  (its log cannot be read: {exc})"
        whole, recent = self._named(log), self._named(log[self._log_was_well :])
        return explanation(whole, recent=recent)

    def _named(self, log: bytes) -> str:
        """With the repository's path as the user knows it."""
        text = log.decode("utf-8", "replace")
        if self._runtime is None:
            return text
        return text.replace(f"{self._runtime}/models", str(self.config.model_repository.resolve()))

    def stop(self, *, kill: bool = False) -> int | None:
        """Let running requests finish, end Triton and remove what it leaves behind; safe to call twice.

        Args:
            kill: do not wait for running requests.

        Returns:
            Triton's exit code, or None if it was not started.
        """
        child, self._child = self._child, None
        try:
            if child is None:
                return None
            deadline = time.monotonic() + self._exit_timeout_s
            if not kill and child.wait(0) is None:
                self._drain()
            return child.stop(max(0.0, deadline - time.monotonic()) + ENDING_S, kill=kill)
        finally:
            self._held.close()
            for leftover in _SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
                leftover.unlink(missing_ok=True)
            if self._runtime is not None:
                shutil.rmtree(self._runtime, ignore_errors=True)
                self._runtime = None

    def _launch(self) -> None:
        config = self.config
        check_settings(config)
        self._exit_timeout_s = whole_flag(config.extra_args, "--exit-timeout-secs", config.exit_timeout_s)
        _warn_of_slow_polling(config, self._exit_timeout_s)
        check_repository(config.model_repository, config.extra_args)
        if "false" in flag_values(config.extra_args, "--allow-http"):
            raise ServerStartError(
                "--allow-http=false: Triton is asked over HTTP; give --http-address=127.0.0.1 instead"
            )
        self._resolve_ports()
        installation = find_installation()
        self._runtime = make_runtime()
        backends = lay_out_backends(installation, self._runtime / "backends")
        self._on_progress(f"starting {installation.binary.name}")
        arguments = [str(installation.binary), *self._flags(backends, installation.caches)]
        self._control = Control(self.http_target, headers(arguments))
        environment = triton_environment(installation.libraries)
        log_file = None if self.log_file == STANDARD_OUTPUT else self.log_file
        self._child = Child(arguments, environment=environment, log_file=log_file, folder=self._runtime)

    def _resolve_ports(self) -> None:
        config, address = self.config, bare_address(self.config.address)

        def held(service: str, address: str, port: int, *taken: int) -> int:
            return port_of(self._held.enter_context(hold_port(service, address, port, taken=taken)))

        self.grpc_port = held("grpc", address, config.grpc_port)
        self.http_port = held("http", self._http_address, config.http_port, self.grpc_port)
        self.metrics_port = held("metrics", address, config.metrics_port, self.grpc_port, self.http_port)
        chosen = (self.grpc_port, self.http_port, self.metrics_port)
        if len(set(chosen)) < len(chosen):
            raise ServerStartError(f"grpc, http and metrics ports are {chosen}: they must differ")

    @property
    def _http_address(self) -> str:
        return bare_address(self.config.http_address or self.config.address)

    def _flags(self, backends: Path, caches: Path) -> list[str]:
        config = self.config
        addresses = {name: bare_address(config.address) for name in ("grpc", "metrics")} | {"http": self._http_address}
        return [
            f"--model-repository={link_repository(backends.parent, config.model_repository)}",
            f"--backend-directory={backends}",
            f"--cache-directory={caches}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            "--disable-auto-complete-config",  # the config is complete, and completing starts each backend twice
            *(address_flag(service, address) for service, address in addresses.items()),
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self.http_port}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={config.exit_timeout_s}",
            *_connection_flags(config.connection_age_s),
            *restrictions(config.extra_args, secrets.token_hex(16)),
            *control_flags(config.model_repository, config.extra_args),
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.start_timeout_s
        self._canaries = read_canaries(self.config.model_repository)
        if idle := idle_gpu(self.config.model_repository):
            _log.warning("%s", idle)
        while not self._control.is_ready():
            self._check_alive(deadline)
            self._check_loaded()
            time.sleep(0.05)
        for canary in self._canaries:
            self._on_progress(f"canary for {canary.model}")
            try:
                check_canary(self._control, canary, timeout_s=max(1.0, deadline - time.monotonic()))
            except ControlError as exc:
                raise ServerStartError(f"canary for {canary.model} failed: {exc}\n{self.explanation()}") from exc
        self._held.close()
        self._on_progress("ready")

    def _check_alive(self, deadline: float) -> None:
        code = self._running_child().wait(0)
        if code is not None:
            raise ServerStartError(f"tritonserver ended with code {code} while starting:\n{self.explanation()}")
        if time.monotonic() > deadline:
            raise ServerStartError(
                f"tritonserver was not ready after {self.config.start_timeout_s:g} s; raise --start-timeout-s, or see "
                f"its log:\n{self.explanation()}"
            )

    def _check_loaded(self) -> None:
        """Triton listens when it has tried every model; told to go on without one that fails, it never is ready."""
        try:
            index = self._control.index()
        except ControlError:  # nobody listens yet
            return
        failed = {entry["name"] for entry in index if entry.get("state") == "UNAVAILABLE"}
        if control_mode(self.config.extra_args) == POLL:  # then an ensemble without one of its steps has no state
            failed |= {entry["name"] for entry in index if "state" not in entry} & {c.model for c in self._canaries}
        if failed:
            raise ServerStartError(f"not loaded: {', '.join(sorted(failed))}\n{self.explanation()}")

    def _drain(self) -> None:
        drained = drain(self._control, self._take_away(), timeout_s=self._exit_timeout_s)
        if drained and control_mode(self.config.extra_args) != POLL:
            unload_rest(self._control, timeout_s=_STEPS_S)

    def _take_away(self) -> TakeAway:
        if control_mode(self.config.extra_args) == POLL:
            return by_hiding(self._control, self._runtime_directory(), self.config.model_repository)
        return by_unloading(self._control)

    def _running_child(self) -> Child:
        if self._child is None:
            raise ServerStartError("the server is not running; call start() first")
        return self._child

    def _runtime_directory(self) -> Path:
        if self._runtime is None:
            raise ServerStartError("the server is not running, so it has no log file of its own")
        return self._runtime


def _warn_of_slow_polling(config: ServerConfig, exit_timeout_s: int) -> None:
    poll_s = whole_flag(config.extra_args, "--repository-poll-secs", _POLL_S)
    if control_mode(config.extra_args) == POLL and poll_s >= exit_timeout_s:
        _log.warning(
            "--repository-poll-secs=%d is not below --exit-timeout-s=%d: a stop may lose requests between two steps; "
            "lower it, or leave --model-control-mode=poll out and switch versions by triton-rerank-export activate "
            "--target",
            poll_s,
            exit_timeout_s,
        )


def _connection_flags(age_s: float) -> list[str]:
    """Milliseconds; Triton takes whole ones. Pings of clients that wait for long calls are no abuse (default: two)."""
    pings = "--grpc-http2-max-ping-strikes=0"
    if age_s <= 0:
        return [pings]
    age_ms, grace_ms = max(1, round(1000 * age_s)), 1000 * CONNECTION_GRACE_S
    return [pings, f"--grpc-max-connection-age={age_ms}", f"--grpc-max-connection-age-grace={grace_ms}"]
