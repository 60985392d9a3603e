"""TensorRT through ``trtexec``, where a container has that and not the Python package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank.contract import LOGITS
from triton_rerank_export.errors import ExportError
from triton_rerank_export.tensorrt.profiles import Profile, shape_list

_NVIDIAS_FOLDER = "/usr/src/tensorrt/bin"
_BANNER = re.compile(r"\[TensorRT v(\d+)(\d\d)(\d\d)\]")  # v110201 is 11.2.1
_SHOWN_ERRORS = 3


def find() -> str | None:
    """Path of trtexec: on PATH, or where NVIDIA's packages put it."""
    return shutil.which("trtexec") or shutil.which("trtexec", path=_NVIDIAS_FOLDER)


def version() -> str:
    """TensorRT's version, three numbers.

    Raises:
        ExportError: trtexec does not run, or does not tell.
    """
    told = _BANNER.search(_run(["--help"]))
    if told is None:
        raise ExportError(f"{find()} does not tell TensorRT's version")
    return ".".join(str(int(number)) for number in told.groups())


def trtexec_arguments(
    graph: Path, output: Path, *, inputs: Sequence[str], profiles: Sequence[Profile], timing_cache: Path
) -> list[str]:
    """Arguments that build a plan; types are the graph's, as TensorRT 11 knows nothing else.

    Args:
        graph: ONNX file of standard operators.
        output: the plan.
        inputs: names of the graph's inputs, each ``(n, length)``.
        profiles: in the order of their indices.
        timing_cache: read if it is there, and written.
    """
    arguments = [f"--onnx={graph}", f"--saveEngine={output}", f"--timingCacheFile={timing_cache}", "--skipInference"]
    for index, profile in enumerate(profiles):
        arguments += [
            f"--profile={index}",
            f"--minShapes={shape_list(inputs, profile.minimum)}",
            f"--optShapes={shape_list(inputs, profile.optimum)}",
            f"--maxShapes={shape_list(inputs, profile.maximum)}",
        ]
    return arguments


def build(graph: Path, output: Path, *, inputs: Sequence[str], profiles: Sequence[Profile], timing_cache: Path) -> None:
    """Build a plan; arguments and errors as of `tensorrt_package.build`."""
    _run(trtexec_arguments(graph, output, inputs=inputs, profiles=profiles, timing_cache=timing_cache))
    if not output.is_file():
        raise ExportError(f"{graph.name}: trtexec ended well but wrote no {output.name}")


class PlanRunner:
    """Runs a plan's profiles, one process a call.

    Args:
        plan: as `build` writes it.
    """

    def __init__(self, plan: Path) -> None:
        self._plan = plan

    def __call__(self, profile: int, tensors: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """Logits ``(n, 1)`` of tensors ``(n, length)`` that fit the profile."""
        n, length = next(iter(tensors.values())).shape
        with tempfile.TemporaryDirectory(prefix="trtexec-") as folder:
            files = {name: Path(folder) / f"{name}.bin" for name in tensors}
            for name, path in files.items():
                path.write_bytes(np.ascontiguousarray(tensors[name]).tobytes())
            result = Path(folder) / "output.json"
            _run(
                [
                    f"--loadEngine={self._plan}",
                    f"--useProfile={profile}",
                    f"--shapes={shape_list(list(tensors), (n, length))}",
                    "--loadInputs=" + ",".join(f"{name}:{path}" for name, path in files.items()),
                    f"--exportOutput={result}",
                    *("--iterations=1", "--warmUp=0", "--duration=0"),
                ]
            )
            outputs = {tensor["name"]: tensor["values"] for tensor in json.loads(result.read_text(encoding="utf-8"))}
        return np.asarray(outputs[LOGITS], dtype=np.float32).reshape(n, 1)


def _run(arguments: list[str]) -> str:
    """What trtexec writes.

    Raises:
        ExportError: it cannot be started, or ends with a fault; holds its last error lines.
    """
    program = find() or "trtexec"
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace", check=False)
    except OSError as exc:
        raise ExportError(f"{program} cannot be started: {exc}") from exc
    told = done.stdout + done.stderr
    if done.returncode:
        errors = [line for line in told.splitlines() if "[E]" in line] or told.splitlines()
        raise ExportError(f"{program} ended with {done.returncode}: " + " | ".join(errors[-_SHOWN_ERRORS:]))
    return told
