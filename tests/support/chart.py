"""The Helm chart, rendered by the real Helm that `make deploy-tools` installs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart" / "triton-rerank"
TOOLS = ROOT / ".venv-deploy" / "bin"
CRDS = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")


def tool(name: str) -> Path:
    """A program of `make deploy-tools`; the test is skipped where it is not installed."""
    program = TOOLS / name
    if not program.exists():
        pytest.skip(f"{name} is not installed: `make deploy-tools` does it")
    return program


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(*arguments: str, kube: str = "1.36.0", crds: tuple[str, ...] = CRDS) -> subprocess.CompletedProcess[str]:
    """`helm template` of the chart as release ``r`` in namespace ``search``."""
    apis = [flag for crd in crds for flag in ("--api-versions", crd)]
    return helm("template", "r", str(CHART), "--namespace", "search", "--kube-version", kube, *apis, *arguments)


def render(*arguments: str, kube: str = "1.36.0") -> dict[str, dict[str, Any]]:
    """The rendered objects by kind; a second one of a kind is ``Kind/name``."""
    done = template(*arguments, kube=kube)
    assert done.returncode == 0, done.stderr
    objects: dict[str, dict[str, Any]] = {}
    for each in yaml.safe_load_all(done.stdout):
        kind = each["kind"]
        objects[f"{kind}/{each['metadata']['name']}" if kind in objects else kind] = each
    return objects


def container_args(*arguments: str) -> list[str]:
    """What the pod adds to the image's entry point."""
    args: list[str] = render(*arguments)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    return args
