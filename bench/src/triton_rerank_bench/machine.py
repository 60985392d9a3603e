"""What a figure was measured on: processor, threads, versions, date; others' load of it, and a server's memory."""

from __future__ import annotations

import datetime
import os
import platform
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType

import psutil

from triton_rerank_bench.errors import BenchError

INTERVAL_S = 0.05  # of samples of memory
# Instructions that decide how fast matrix products run in fp32, bf16 and int8.
RELEVANT_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
DISTRIBUTIONS = (
    "triton-rerank", "triton-rerank-server", "triton-rerank-bench", "tritonclient", "onnxruntime", "tokenizers",
    "sentence-transformers", "transformers", "torch", "bm25s", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where a measurement ran; flags are those of `RELEVANT_FLAGS`, cores those that this process may run on."""

    cpu: str
    cpu_flags: list[str]
    cores: int
    memory_gib: float
    system: str


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """Describe this machine; what cannot be read is "unknown"."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    info = dict(re.findall(r"^(model name|flags)\s*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    flags = info.get("flags", "").split()
    return Machine(
        cpu=info.get("model name") or platform.processor() or "unknown",
        cpu_flags=[flag for flag in RELEVANT_FLAGS if flag in flags],
        cores=usable_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
    )


def usable_cores() -> int:
    """Physical cores that this process may run on, which is what ONNX Runtime and torch start threads for."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return min(physical, allowed)


class OtherLoad:
    """Measures how busy everyone else keeps this machine while blocks under ``with`` run.

    A figure taken beside other work says little: threads that wait for each other suffer more from it than others do.
    Ours are this process and its children; one that ends inside a block counts as another's. ``read`` gives seconds of
    all cores together: in all, not idle, and ours; None reads this system's.
    """

    def __init__(self, read: Callable[[], tuple[float, float, float]] | None = None) -> None:
        self._read = read or _read_seconds
        self._total = self._others = 0.0
        self._start = (0.0, 0.0, 0.0)

    def __enter__(self) -> OtherLoad:
        self._start = self._read()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        total, busy, ours = (now - then for now, then in zip(self._read(), self._start, strict=True))
        self._total += total
        self._others += busy - ours

    def share(self) -> float:
        """Share of all cores' time that others used inside the blocks, 0 to 1; a hypervisor's steal is others' use."""
        return min(1.0, max(0.0, self._others / self._total)) if self._total > 0 else 0.0


def _read_seconds() -> tuple[float, float, float]:
    times = psutil.cpu_times()
    # guest time is part of user time, so it must not be counted again
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    idle = times.idle + getattr(times, "iowait", 0.0)
    return total, total - idle, _our_cpu_seconds()


def _our_cpu_seconds() -> float:
    root = psutil.Process()
    seconds = 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def installed_versions() -> dict[str, str]:
    """Python's version and those of the installed `DISTRIBUTIONS`."""
    return {"python": platform.python_version()} | versions_of(DISTRIBUTIONS)


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed here."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def today() -> str:
    """Date in UTC, as 2026-11-21."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


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
