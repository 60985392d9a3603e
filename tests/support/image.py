"""What the files in docker/ say: read from the files themselves, so that a test runs what the image runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

DOCKER = Path(__file__).parents[2] / "docker"
SERVING, EXPORT, COMPOSE = DOCKER / "Dockerfile", DOCKER / "export.Dockerfile", DOCKER / "compose.yaml"
GATEWAY, STACK, TLS = DOCKER / "gateway.Dockerfile", DOCKER / "stack.yaml", DOCKER / "tls.yaml"

SERVE = ["python3", "-m", "triton_rerank_server.cli"]  # what the serving image's entry point runs
NVIDIAS_ENTRYPOINT = "/opt/nvidia/nvidia_entrypoint.sh"  # checks the driver, then becomes its arguments


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction; comments left out, continued lines joined."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def of(dockerfile: Path, keyword: str) -> list[str]:
    """Arguments of every instruction with that keyword."""
    return [arguments for found, arguments in instructions(dockerfile) if found == keyword]


def default(dockerfile: Path, argument: str) -> str:
    """Default of a build argument."""
    (value,) = [text.split("=", 1)[1] for text in of(dockerfile, "ARG") if text.startswith(argument + "=")]
    return value


def entrypoint(dockerfile: Path) -> list[str]:
    """ENTRYPOINT without NVIDIA's script, which the images that are NVIDIA's begin with."""
    script, *rest = _words(of(dockerfile, "ENTRYPOINT")[-1])
    assert (script == NVIDIAS_ENTRYPOINT) == (dockerfile != GATEWAY)
    return rest if script == NVIDIAS_ENTRYPOINT else [script, *rest]


def serve_flags() -> list[str]:
    """Flags of the serving image's entry point; what follows it goes to tritonserver."""
    *program, last = entrypoint(SERVING)
    assert (program[: len(SERVE)], last) == (SERVE, "--")
    return program[len(SERVE) :]


def command(dockerfile: Path) -> list[str]:
    """CMD."""
    return _words(of(dockerfile, "CMD")[-1])


def healthcheck(dockerfile: Path) -> list[str]:
    """What HEALTHCHECK runs."""
    return _words(of(dockerfile, "HEALTHCHECK")[-1].split(" CMD ", 1)[1])


def compose(path: Path = COMPOSE) -> dict[str, Any]:
    """A compose file as data."""
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data


def service(profile: str = "cpu") -> dict[str, Any]:
    """The server of compose.yaml under a profile."""
    return dict(compose()["services"][f"triton-{profile}"])


def stop_grace_s() -> float:
    """Seconds between SIGTERM and SIGKILL under compose."""
    return float(service()["stop_grace_period"].removesuffix("s"))


def _words(text: str) -> list[str]:
    return [str(word) for word in json.loads(text)]
