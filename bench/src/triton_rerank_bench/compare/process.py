"""A peer in a process of its own: speaks the lines of worker.py, with a time limit on every answer."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from triton_rerank_bench.errors import BenchError

WORKER = Path(__file__).with_name("worker.py")
LOAD_TIMEOUT_S = 300.0
SCORE_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 5.0
_TAIL_LINES = 3  # of what the library said last


class PeerError(BenchError):
    """A peer cannot be loaded, died, is too slow or refused: it is left out, and the measurement goes on."""


class PeerProcess:
    """One worker, by the interpreter of the peer's environment; its libraries compute with ``n_threads``.

    Raises:
        PeerError: the interpreter is not there.
    """

    def __init__(self, name: str, python: Path, *, n_threads: int, script: Path = WORKER) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                [str(python), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment(n_threads),
                start_new_session=True,  # Ctrl-C is for the one who measures
            )
        except OSError as exc:
            self._stderr.close()
            raise PeerError(
                f"{name}: {python} cannot be started ({exc.strerror}); `make perf-peers` builds it"
            ) from exc
        # A thread reads, because a pipe has no time limit; it blocks, so that waiting costs nothing.
        self._why_closed = "is closed"
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"peer {name}", daemon=True).start()

    def load(self, library: str, arguments: Mapping[str, Any], *, timeout_s: float = LOAD_TIMEOUT_S) -> dict[str, str]:
        """Have the library load a model; gives what the worker notes of it, such as the precision it computes in.

        Raises:
            PeerError: it cannot, or takes too long.
        """
        notes: dict[str, str] = self._ask({"op": "load", "library": library, "arguments": arguments}, timeout_s)[
            "notes"
        ]
        return notes

    def scores(
        self,
        query: str,
        documents: Sequence[str],
        options: Mapping[str, Any],
        *,
        timeout_s: float = SCORE_TIMEOUT_S,
    ) -> list[float]:
        """One score a document, in the caller's order.

        Raises:
            PeerError: it failed, died, or took too long.
        """
        request = {"op": "score", "query": query, "documents": list(documents), "options": options}
        scores: list[float] = self._ask(request, timeout_s)["scores"]
        if len(scores) != len(documents):
            raise PeerError(f"{len(scores)} scores for {len(documents)} documents")
        return scores

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it and its children have used so far."""
        worker = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (worker, *worker.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def close(self) -> None:
        """End it and what it started."""
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        for process in [*children, self._process]:
            try:
                process.kill()  # it holds nothing that could be lost
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self._process.wait(CLOSE_TIMEOUT_S)
        for pipe in (self._process.stdin, self._stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        pipe = self._process.stdin
        assert pipe is not None
        if pipe.closed:
            raise PeerError(self._why_closed)
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
            line = self._lines.get(timeout=timeout_s)
        except BrokenPipeError:
            line = b""
        except queue.Empty:  # a late answer would be taken for the next one's
            raise self._given_up(f"no answer in {timeout_s:g} s") from None
        if not line:  # while it dies its pipe may still take a question, which nobody would answer
            raise self._given_up(f"its process {self._end()}; {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{answer['error']}")
        return answer

    def _given_up(self, why: str) -> PeerError:
        """Closed; who asks again is told the same."""
        self._why_closed = why
        self.close()
        return PeerError(why)

    def _end(self) -> str:
        """How it ended, in words; its pipe may close a moment before it does."""
        try:
            code = self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if code == -signal.SIGKILL:
            return "was killed, as the kernel does where memory runs out: measure fewer peers in one run (--only)"
        return f"ended with {code}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(b"")  # the end

    def _last_words(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        text = os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")  # read() would move the writers' place
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"it said last: {' / '.join(lines[-_TAIL_LINES:])}" if lines else "it said nothing"


def environment(n_threads: int) -> dict[str, str]:
    """Of a worker: as many threads as the others. How threads wait is left to the libraries, as their users have it."""
    return os.environ | {
        "OMP_NUM_THREADS": str(n_threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    }
