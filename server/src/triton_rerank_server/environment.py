"""Environment of tritonserver: its Python stubs must find this interpreter's library and packages."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path


def triton_environment(libraries: Path | None) -> dict[str, str]:
    """This process's environment plus what Triton and the Python backend's stub need.

    The stub is a program that embeds Python: it links libpython (LIBDIR), and finds packages through PYTHONPATH,
    since it does not read the virtual environment's own configuration.

    Args:
        libraries: folder of Triton's own shared libraries, or None.
    """
    environment = dict(os.environ)
    folders = [libraries, sysconfig.get_config_var("LIBDIR")]
    _prepend(environment, "LD_LIBRARY_PATH", [str(folder) for folder in folders if folder])
    _prepend(environment, "PYTHONPATH", [path for path in _package_folders() if Path(path).is_dir()])
    _prepend(environment, "PATH", [str(Path(sys.executable).parent)])
    return environment


def _package_folders() -> list[str]:
    purelib, platlib = sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
    return list(dict.fromkeys([purelib, platlib, *site.getsitepackages()]))


def _prepend(environment: dict[str, str], name: str, paths: list[str]) -> None:
    present = environment.get(name)
    environment[name] = os.pathsep.join([*paths, *([present] if present else [])])
