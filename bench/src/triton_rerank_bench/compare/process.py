"""Peers in processes of their own, each in its environment, with a time limit on every answer: see worker.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
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

    ``notes`` are the worker's of the model that is loaded, such as the precision that it computes in.

    Raises:
        PeerError: the interpreter is not there.
    """

    def __init__(self, name: str, python: Path, *, n_threads: int, script: Path = WORKER) -> None:
        self.name = name
        self.notes: dict[str, str] = {}
        self._why_closed = ""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._pipe, theirs = Pipe()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [str(python), str(script), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    env=environment(n_threads),
                    start_new_session=True,  # Ctrl-C is for the one who measures
                )
        except OSError as exc:
            self._pipe.close()
            self._said.close()
            raise PeerError(
                f"{name}: {python} cannot be started ({exc.strerror}); `make perf-peers` builds it"
            ) from exc

    def load(self, library: str, arguments: Mapping[str, Any]) -> None:
        """Have a library load a model; raises PeerError where it cannot, or takes too long."""
        self.notes = self.ask({"op": "load", "library": library, "arguments": arguments}, LOAD_TIMEOUT_S)

    def scores(
        self,
        query: str,
        documents: Sequence[str],
        options: Mapping[str, Any],
        *,
        timeout_s: float = SCORE_TIMEOUT_S,
    ) -> list[float]:
        """One score a document, in the caller's order; raises PeerError where it failed, died, or took too long."""
        request = {"op": "score", "query": query, "documents": list(documents), "options": options}
        scores: list[float] = self.ask(request, timeout_s)
        if len(scores) != len(documents):
            raise PeerError(f"{len(scores)} scores for {len(documents)} documents")
        return scores

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> Any:
        """The worker's answer; raises PeerError where it failed, died, or took too long."""
        if self._pipe.closed:
            raise PeerError(self._why_closed or "is closed")
        try:
            self._pipe.send(request)
            if not self._pipe.poll(timeout_s):  # a late answer would be taken for the next one's
                raise self._given_up(f"no answer in {timeout_s:g} s")
            answer, error = self._pipe.recv()
        except (EOFError, OSError):
            raise self._given_up(f"its process {self._end()}; {self._last_words()}") from None
        if error:
            raise PeerError(error)
        return answer

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it and its children have used so far."""
        worker = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (worker, *worker.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def close(self) -> None:
        """End it and what it started."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.kill()  # it holds nothing that could be lost
        self._process.wait(CLOSE_TIMEOUT_S)
        self._pipe.close()
        self._said.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

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
            return "closed its pipe"
        if code == -signal.SIGKILL:
            return "was killed, as the kernel does where memory runs out: measure fewer peers in one run (--only)"
        return f"ended with {code}"

    def _last_words(self) -> str:
        text = os.pread(self._said.fileno(), 1 << 24, 0).decode(
            errors="replace"
        )  # read() would move the writers' place
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"it said last: {' / '.join(lines[-_TAIL_LINES:])}" if lines else "it said nothing"


class PeerContestant:
    """A peer at one setting, loaded by a process."""

    def __init__(self, peer: Peer, setting: Setting, process: PeerProcess) -> None:
        self.name, self.setting = f"{peer.name}, {setting.text}", setting.text
        self.process, self.options = process, setting.options

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Logits, or what the library gives that has their order."""
        return self.process.scores(query, documents, self.options)


class Workers:
    """Running workers, one for each way of loading a peer; a context manager that ends them.

    ``locate`` gives the interpreter of a peer's environment and the model folder that it loads; it may raise PeerError.
    Each computes with ``n_threads``, on pairs of at most ``max_length`` tokens.
    """

    def __init__(self, locate: Callable[[Peer], tuple[Path, Path]], *, max_length: int, n_threads: int) -> None:
        self._locate, self._common = locate, {"max_length": max_length, "n_threads": n_threads}
        self._running: dict[tuple[str, str], PeerProcess] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end(list(self._running))

    def get(self, peer: Peer, setting: Setting) -> PeerContestant:
        """The peer, loaded by a worker that may serve other settings too; raises PeerError where it cannot be."""
        key = _key(peer, setting)
        if key not in self._running:
            python, folder = self._locate(peer)
            process = PeerProcess(peer.name, python, n_threads=self._common["n_threads"])
            try:
                process.load(peer.library, {"folder": str(folder), **self._common, **peer.load, **setting.load})
            except BaseException:
                process.close()
                raise
            self._running[key] = process
        return PeerContestant(peer, setting, self._running[key])

    def keep(self, peer: Peer, contestants: Sequence[PeerContestant]) -> None:
        """End the peer's workers that none of these needs."""
        needed = [each.process for each in contestants]
        self._end([key for key, it in self._running.items() if key[0] == peer.name and it not in needed])

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
            self._running.pop(key).close()

    def _cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process in self._running.values())


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
