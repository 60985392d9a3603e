"""Envoy with the configuration that deploy/envoy has, on free ports, over servers that a test may take out."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]
from support.chart import ROOT, tool
from support.tritons import free_ports, wait_until

ENVOY = ROOT / "deploy" / "envoy"


class Envoy:
    """A running one.

    Attributes:
        target: for callers.
    """

    def __init__(self, folder: Path, admin: int, listener: int) -> None:
        self._folder = folder
        self._admin = admin
        self.target = f"127.0.0.1:{listener}"
        config = yaml.safe_load((ENVOY / "envoy.yaml").read_text())
        _port(config["admin"])["port_value"] = admin
        _port(config["static_resources"]["listeners"][0])["port_value"] = listener
        (cluster,) = config["static_resources"]["clusters"]
        cluster["eds_cluster_config"]["eds_config"]["path_config_source"]["path"] = str(folder / "endpoints.yaml")
        self.config = folder / "envoy.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def serve(self, targets: Sequence[str]) -> None:
        """Put a new endpoints.yaml over the old one, as its comment says."""
        data = yaml.safe_load((ENVOY / "endpoints.yaml").read_text())
        (endpoints,) = data["resources"][0]["endpoints"]
        endpoints["lb_endpoints"] = [{"endpoint": {"address": {"socket_address": _address(each)}}} for each in targets]
        new = self._folder / "new.yaml"
        new.write_text(yaml.safe_dump(data))
        new.rename(self._folder / "endpoints.yaml")

    def active(self, target: str) -> int | None:
        """Calls that one server has from it at this moment; None if it is not used at all."""
        rows = httpx.get(f"http://127.0.0.1:{self._admin}/clusters", timeout=10).text.splitlines()
        found = dict(row.removeprefix(f"servers::{target}::").split("::", 1) for row in rows if f"::{target}::" in row)
        return int(found["rq_active"]) if found.get("health_flags") == "healthy" else None

    def ends(self, target: str) -> bool:
        """Is it gone from Envoy's list? Calls that it had end by themselves."""
        return self.active(target) is None


def _port(part: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = part["address"]["socket_address"]
    return found


def _address(target: str) -> dict[str, Any]:
    host, _, port = target.rpartition(":")
    return {"address": host, "port_value": int(port)}


@contextlib.contextmanager
def envoy(folder: Path, targets: Sequence[str]) -> Iterator[Envoy]:
    """It runs inside the block, with every server found healthy at its start."""
    program, log = str(tool("envoy")), folder / "envoy.log"
    with free_ports(2) as (admin, listener):
        made = Envoy(folder, admin, listener)
        made.serve(targets)
        flags = ["-c", str(made.config), "--concurrency", "1", "--log-path", str(log), "--disable-hot-restart"]
        process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert wait_until(lambda: _all_healthy(made, targets), 60), log.read_text() if log.exists() else "no log"
            yield made
        finally:
            process.kill()
            process.wait()


def _all_healthy(made: Envoy, targets: Sequence[str]) -> bool:
    try:
        return all(made.active(target) is not None for target in targets)
    except httpx.TransportError:  # it does not listen yet
        return False
