"""Environment of tritonserver: its Python stubs must find this interpreter's library and packages."""

from __future__ import annotations

import logging
import os
import site
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

_log = logging.getLogger(__name__)


def triton_environment(libraries: Path | None) -> dict[str, str]:
    """This process's environment plus what Triton and the Python backend's stub need.

    The stub is a program that embeds Python: it links libpython (LIBDIR), and finds packages through PYTHONPATH,
    since it does not read the virtual environment's own configuration.

    Args:
        libraries: folder of Triton's own shared libraries, or None where the system has them.
    """
    environment = dict(os.environ)
    if libraries is not None:  # else the system knows its own, and CUDA's must come before what lies in LIBDIR
        folders = [libraries, sysconfig.get_config_var("LIBDIR")]
        _prepend(environment, "LD_LIBRARY_PATH", [str(folder) for folder in folders if folder])
    environment["PYTHONPATH"] = _without_models(environment.get("PYTHONPATH", ""))
    _prepend(environment, "PYTHONPATH", [path for path in _package_folders() if Path(path).is_dir()])
    _prepend(environment, "PATH", [str(Path(sys.executable).parent)])
    return environment


def _without_models(python_path: str) -> str:
    """Leave out what holds a module ``model``: the stub imports a backend by that name, and looks there first."""
    kept = []
    for folder in map(os.path.abspath, filter(None, python_path.split(os.pathsep))):  # Triton has another folder
        found = PathFinder.find_spec("model", [folder])
        if found is None or found.origin is None:
            kept.append(folder)
        else:
            _log.warning("PYTHONPATH: Triton gets it without %s: %s would hide our backends", folder, found.origin)
    return os.pathsep.join(kept)


def _package_folders() -> list[str]:
    purelib, platlib = sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
    return list(dict.fromkeys([purelib, platlib, *site.getsitepackages()]))


def _prepend(environment: dict[str, str], name: str, paths: list[str]) -> None:
    present = environment.get(name)
    environment[name] = os.pathsep.join([*paths, *([present] if present else [])])
