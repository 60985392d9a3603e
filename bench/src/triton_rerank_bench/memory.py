"""Memory of the server's processes, summed so that shared pages count once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from triton_rerank_bench.errors import BenchError

INTERVAL_S = 0.05


@dataclass(frozen=True)
class ProcessMemory:
    """One process and its proportional set size: its own pages, and of each shared page its share."""

    name: str
    pss_bytes: int


@dataclass
class PeakMemory:
    """The largest sum of PSS over a process and all its children that was seen in so many samples."""

    pss_bytes: int = 0
    processes: list[ProcessMemory] = field(default_factory=list)
    samples: int = 0

    def take(self, processes: list[ProcessMemory]) -> None:
        """Take in one sample."""
        self.samples += 1
        total = sum(process.pss_bytes for process in processes)
        if total > self.pss_bytes:
            self.pss_bytes, self.processes = total, processes


def sample(pid: int) -> list[ProcessMemory]:
    """PSS of a process and all below it; raises BenchError where it is gone, or the system has none (it is Linux's)."""
    found = []
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # a helper that ended between the listing and the reading
                found.append(ProcessMemory(process.name(), int(process.memory_full_info().pss)))
    except psutil.Error as exc:
        raise BenchError(f"memory of process {pid} cannot be read ({exc}); the server has ended") from exc
    except AttributeError as exc:
        raise BenchError("this system does not tell a process's PSS; measure memory on Linux") from exc
    return found


@contextmanager
def watching(pid: int, peak: PeakMemory, *, interval_s: float = INTERVAL_S) -> Iterator[None]:
    """Sample in a thread while the block runs.

    Reading PSS walks the page tables of every process, which costs milliseconds: never time anything inside.

    Raises:
        BenchError: at the end of the block, if the server has ended meanwhile.
    """
    stop = threading.Event()

    def loop() -> None:
        """Take a sample each interval until the block ends or the server is gone, which the last one below tells."""
        with suppress(BenchError):
            while not stop.wait(interval_s):
                peak.take(sample(pid))

    thread = threading.Thread(target=loop, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    peak.take(sample(pid))
