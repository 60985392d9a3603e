"""The device that is measured: what it is, what is missing to use it, how much of its memory is taken.

nvidia-smi tells it: it comes with the driver, so nothing is to be installed, and the few readings are taken where
nothing is timed.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import Any, Literal

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import describe_machine, versions_of
from triton_rerank_bench.report import LOUD

CPU_NOTE = "no GPU: this run only shows that the script works; its figures say nothing about GPUs"
VERSIONS = ("onnxruntime-gpu", "nvidia-pytriton", "nvidia-cudnn-cu13", "nvidia-cublas")
LEAST_DRIVER = 580  # of CUDA 13, as NVIDIA says (docs.nvidia.com/deploy/cuda-compatibility)
_QUERY_TIMEOUT_S = 30.0
_FIELDS = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm")


@dataclass(frozen=True)
class Device:
    """What computes; on a CPU there is nothing but its name and a note for who reads a figure."""

    kind: Literal["cuda", "cpu"]
    name: str
    index: int = 0
    driver: str | None = None
    memory_mib: int | None = None
    compute_capability: str | None = None
    power_limit_w: str | None = None
    max_sm_clock_mhz: str | None = None
    cuda: str | None = None
    versions: dict[str, str] | None = None
    note: str | None = None

    @property
    def torch_name(self) -> str:
        """What torch calls it."""
        return f"cuda:{self.index}" if self.kind == "cuda" else "cpu"

    def memory_used_mib(self) -> int | None:
        """Memory of a GPU that all processes together have taken; None on a CPU, and where nvidia-smi does not know.

        Inside a container nvidia-smi does not see which process took it, so differences of this are what is reported.
        """
        return _mib(_smi(self.index, "memory.used")) if self.kind == "cuda" else None

    def lines(self) -> list[str]:
        """What computes, and what to know of it."""
        if self.kind == "cpu":
            return [f"device: CPU, {self.name}", f"{LOUD}{self.note}"]
        memory = "memory not told" if self.memory_mib is None else f"{self.memory_mib:,} MiB"
        told = (
            f"device: {self.name}, {memory}, compute capability {self.compute_capability}, {self.power_limit_w} W, "
            f"SM clock to {self.max_sm_clock_mhz} MHz; driver {self.driver}, torch for CUDA {self.cuda}"
        )
        version = (self.driver or "").partition(".")[0]
        old = version.isdecimal() and int(version) < LEAST_DRIVER
        return [
            told,
            *([f"{LOUD}driver {self.driver}: CUDA 13 needs {LEAST_DRIVER} or newer; update it"] if old else []),
        ]


def describe(kind: Literal["cuda", "cpu"], device_id: int = 0) -> Device:
    """Describe the device, after a look whether everything is there that its use needs.

    Raises:
        BenchError: no driver, no such GPU, or torch or onnxruntime cannot use it.
    """
    if kind == "cpu":
        return Device("cpu", describe_machine().cpu, note=CPU_NOTE)
    values = [part.strip() for part in _smi(device_id, ",".join(_FIELDS)).split(",")]
    if len(values) != len(_FIELDS):
        raise BenchError(
            f"nvidia-smi answers {values} for {', '.join(_FIELDS)}: it is not understood; update the driver"
        )
    _check_libraries()
    import torch

    name, driver, memory, capability, power, clock = values
    mib, versions = _mib(memory), versions_of(VERSIONS)
    return Device("cuda", name, device_id, driver, mib, capability, power, clock, torch.version.cuda, versions)


def _mib(value: str) -> int | None:
    try:
        return int(float(value))
    except ValueError:  # "[N/A]", of a share of a GPU (MIG, vGPU)
        return None


def _smi(device_id: int, fields: str) -> str:
    """What nvidia-smi says of fields of a device, separated by commas."""
    binary = shutil.which("nvidia-smi")
    if binary is None:
        raise BenchError(
            "--device cuda: nvidia-smi is not on PATH, so this machine has no NVIDIA driver; run on a machine with an "
            "NVIDIA GPU, or try the script with --device cpu --shape tiny"
        )
    arguments = [binary, f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={device_id}"]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"nvidia-smi does not answer ({exc}); is the driver loaded?") from exc
    if done.returncode or not done.stdout.strip():
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise BenchError(f"nvidia-smi cannot see GPU {device_id} ({said}); is the driver loaded?")
    return done.stdout.strip().splitlines()[0]


def _check_libraries() -> None:
    import onnxruntime
    import torch

    onnxruntime_has: Any = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in onnxruntime_has:
        raise BenchError(
            f"onnxruntime {onnxruntime.__version__} has no CUDA provider; `make perf-gpu` builds an environment with "
            "onnxruntime-gpu, which cannot stand beside onnxruntime"
        )
    if not torch.cuda.is_available():
        raise BenchError(
            f"torch {torch.__version__} sees no CUDA device; install a CUDA build of it that the driver can run"
        )
