"""Peers in processes of their own, which speak the lines of worker.py, with a time limit on every answer."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from triton_rerank_bench.compare.catalogue import Peer, Setting
from triton_rerank_bench.errors import PeerError

WORKER = Path(__file__).with_name("worker.py")
LOAD_TIMEOUT_S = 300.0
SCORE_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 5.0
_TAIL_LINES = 3  # of what the library said last


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
        answer = self._ask({"op": "load", "library": library, "arguments": arguments}, timeout_s)
        notes: dict[str, str] = answer["notes"]
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


class Workers:
    """Running workers, one for each way of loading a peer; a context manager that ends them.

    ``locate`` gives the interpreter of a peer's environment and the model folder that it loads; it may raise PeerError.
    Each computes with ``n_threads``, on pairs of at most ``max_length`` tokens.
    """

    def __init__(self, locate: Callable[[Peer], tuple[Path, Path]], *, max_length: int, n_threads: int) -> None:
        self._locate, self._common = locate, {"max_length": max_length, "n_threads": n_threads}
        self._running: dict[tuple[str, str], tuple[PeerProcess, dict[str, str]]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end(list(self._running))

    def get(self, peer: Peer, setting: Setting) -> tuple[PeerProcess, dict[str, str]]:
        """The worker that has loaded it, and its notes; raises PeerError where it cannot be loaded."""
        key = _key(peer, setting)
        if key not in self._running:
            python, folder = self._locate(peer)
            process = PeerProcess(peer.name, python, n_threads=self._common["n_threads"])
            try:
                notes = process.load(peer.library, {"folder": str(folder), **self._common, **peer.load, **setting.load})
            except BaseException:
                process.close()
                raise
            self._running[key] = process, notes
        return self._running[key]

    def keep(self, peer: Peer, settings: Sequence[Setting]) -> None:
        """End the peer's workers that none of these settings needs."""
        keys = {_key(peer, setting) for setting in settings}
        self._end([key for key in self._running if key[0] == peer.name and key not in keys])

    def drop(self, peer: Peer, setting: Setting) -> None:
        """End the worker of a setting, where there is one."""
        self._end({_key(peer, setting)} & self._running.keys())

    def idle_share(self, seconds: float) -> float:
        """Share of one core that all of them use together while nobody asks them anything."""
        before = self._cpu_seconds()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / seconds

    def _end(self, keys: Iterable[tuple[str, str]]) -> None:
        for key in keys:
            self._running.pop(key)[0].close()

    def _cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process, _ in self._running.values())


def _key(peer: Peer, setting: Setting) -> tuple[str, str]:
    """Equal where one worker will do."""
    return peer.name, json.dumps(dict(setting.load), sort_keys=True)


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
