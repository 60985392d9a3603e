"""A child process that cannot outlive us, with its whole group ended at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from triton_rerank_server.errors import ServerStartError

# Asks Linux for SIGTERM when the parent dies, then becomes the program. Not a preexec_fn: that makes subprocess fork,
# and a gRPC client in this process does not survive a fork of it (its poller ends the child).
_PR_SET_PDEATHSIG = 1
_END_WITH_PARENT = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {signal.SIGTERM.value})
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as exc:
        sys.exit(f"{{sys.argv[2]}} cannot be started: {{exc}}")
"""


class Child:
    """A process in a group of its own, so that Ctrl-C reaches us first and stubs can be ended with it.

    Linux sends the parent-death signal when the *thread* that forked ends, so a thread of ours starts the process
    and waits for it; even a killed parent leaves no orphan.

    Args:
        arguments: program and arguments.
        environment: the whole environment.
        log_file: standard output and error are appended here; None means this process's own standard output.
        folder: the process's current folder; None leaves it ours.

    Raises:
        ServerStartError: the program or the log file cannot be opened.
    """

    def __init__(
        self, arguments: list[str], *, environment: dict[str, str], log_file: Path | None, folder: Path | None = None
    ) -> None:
        self._started = threading.Event()
        self._ended = threading.Event()
        self._reaping = threading.Lock()  # whoever holds it, and finds it not ended, knows that the pid is still ours
        self._exit_code: int | None = None
        self._error: OSError | None = None
        self.pid = 0
        thread = threading.Thread(target=self._run, args=(arguments, environment, log_file, folder), daemon=True)
        thread.start()
        self._started.wait()
        if self._error is not None:
            raise ServerStartError(f"{arguments[0]} cannot be started: {self._error}") from self._error

    def wait(self, timeout_s: float | None) -> int | None:
        """Exit code, or None if it still runs after ``timeout_s`` seconds."""
        self._ended.wait(timeout_s)
        return self._exit_code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, not to its group."""
        with self._reaping:
            if not self._ended.is_set():
                os.kill(self.pid, number)

    def stop(self, timeout_s: float, *, kill: bool) -> int | None:
        """SIGTERM, wait, SIGKILL of its whole group if it must be."""
        if not kill:
            self.send_signal(signal.SIGTERM)
            self.wait(timeout_s)
        with self._reaping:
            if not self._ended.is_set():
                self._kill_group()
        return self.wait(timeout_s)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _run(
        self, arguments: list[str], environment: dict[str, str], log_file: Path | None, folder: Path | None
    ) -> None:
        try:
            program = _find(arguments[0])
            wrapper = [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid())]
            with contextlib.nullcontext() if log_file is None else log_file.open("ab") as log:
                process = subprocess.Popen(
                    [*wrapper, program, *arguments[1:]],
                    env=environment,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.pid = process.pid
        except OSError as exc:
            self._error = exc
            return
        finally:
            self._started.set()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # its number is not given away before it is waited for
        with self._reaping:
            self._kill_group()  # stubs are of no use without it
            self._exit_code = process.wait()
            self._ended.set()


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"{program} is not there, or not executable")
    return found
