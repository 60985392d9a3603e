"""Finds tritonserver and lays out the backend directory that it is started with."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.contract import ENCODER_BACKEND
from triton_rerank_server.errors import ServerStartError

OUR_BACKENDS = Path(__file__).parent.parent / "backends"
NATIVE_ENCODERS = ("onnxruntime", "openvino")  # backends that ours stands in for, in older and --native exports


@dataclass(frozen=True)
class Installation:
    """A tritonserver on this machine.

    Attributes:
        binary: the executable.
        backends: its own backend directory; holds ``python`` and, in NVIDIA's images, ``onnxruntime``.
        caches: its response caches, for --cache-config.
        libraries: folder of shared libraries that it needs, or None where the system has them.
        stub: Python-backend stub for this interpreter, or None where ``backends/python`` has one.
    """

    binary: Path
    backends: Path
    caches: Path
    libraries: Path | None = None
    stub: Path | None = None


def find_installation() -> Installation:
    """Find tritonserver: on PATH (NVIDIA's image), else in the PyPI wheel ``nvidia-pytriton``.

    Raises:
        ServerStartError: neither is there, or the wheel has no stub for this Python.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        binary = Path(on_path).resolve()
        root = binary.parent.parent
        return Installation(binary, root / "backends", root / "caches")
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerStartError(
            "no tritonserver: it is not on PATH and the wheel nvidia-pytriton is not installed; "
            "run inside NVIDIA's Triton image, or `pip install 'triton-rerank-server[tritonserver]'`"
        )
    package = Path(spec.submodule_search_locations[0])
    root, libraries = package / "tritonserver", package.parent / "nvidia_pytriton.libs"
    binary = root / "bin" / "tritonserver"
    return Installation(binary, root / "backends", root / "caches", libraries, _wheel_stub(root))


def _wheel_stub(root: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        have = ", ".join(sorted(folder.name for folder in stub.parent.parent.iterdir()))
        raise ServerStartError(f"nvidia-pytriton has no Python-backend stub for Python {version}; it has {have}")
    return stub


def lay_out_backends(installation: Installation, directory: Path) -> Path:
    """Fill ``directory`` with Triton's backends and ours.

    Native backends of ONNX Runtime and OpenVINO are kept where they exist; our encoder stands in where they do not. An
    installation that has our backends, as our image, is used as it is.

    Returns:
        The backend directory to start Triton with.
    """
    if (installation.backends / "tokenizer" / "model.py").is_file():
        return installation.backends
    directory.mkdir(parents=True)
    for backend in sorted(installation.backends.iterdir()):
        if backend.name != "python":
            (directory / backend.name).symlink_to(backend)
    _lay_out_python(installation, directory / "python")
    _copy("tokenizer", directory / "tokenizer")
    _copy("encoder", directory / ENCODER_BACKEND)
    for name in NATIVE_ENCODERS:
        if not (directory / name / f"libtriton_{name}.so").exists():
            _copy("encoder", directory / name)
    return directory


def _copy(backend: str, target: Path) -> None:
    """Its package, and beside that the model.py which Triton looks for and which imports it, and what both share."""
    shutil.copytree(OUR_BACKENDS / backend, target / backend, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (f"{backend}/model.py", "meters.py"):
        shutil.copy2(OUR_BACKENDS / module, target)


def _lay_out_python(installation: Installation, directory: Path) -> None:
    source = installation.backends / "python"
    if installation.stub is None:
        directory.symlink_to(source)
        return
    shutil.copytree(source, directory)  # Triton refuses a library that is a link out of its backend's folder
    shutil.copy2(installation.stub, directory)
