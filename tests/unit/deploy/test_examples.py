"""deploy/examples without their engines: pods by Kubernetes' own schemas, command lines by our own commands."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from support import chart

from triton_rerank_bulk import cli as bulk
from triton_rerank_server import cli as server
from triton_rerank_server.launch.environment import triton_environment
from triton_rerank_server.launch.installation import find_installation

FOLDER = chart.ROOT / "deploy" / "examples"
FILES = sorted(FOLDER.glob("*.yaml"))


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def pods() -> dict[str, dict[str, Any]]:
    """The specs of pods that stand inside the objects of others."""
    runtime, _ = objects("kserve.yaml")
    cluster = objects("rayjob.yaml")[0]["spec"]["rayClusterSpec"]
    fields = ("containers", "volumes")
    found = {
        "kserve": {name: runtime["spec"][name] for name in fields},
        "ray-head": cluster["headGroupSpec"]["template"]["spec"],
    }
    return found | {f"ray-{group['groupName']}": group["template"]["spec"] for group in cluster["workerGroupSpecs"]}


def validate(spec: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "pod.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}))
    arguments: list[str | Path] = [chart.tool("kubernetes-validate"), "-k", "1.33", "--strict", "--quiet", file]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", sorted(pods()))
def test_kubernetes_own_schemas_take_the_pods(name: str, tmp_path: Path) -> None:
    spec = pods()[name]
    done = validate(spec, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    spec["containers"][0]["imagee"] = "x"
    assert "imagee" in validate(spec, tmp_path).stdout + validate(spec, tmp_path).stderr


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_each_says_that_it_was_not_run(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# Not run: ")
    assert f"`{file.name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_job_runs_a_command_that_there_is() -> None:
    job = objects("rayjob.yaml")[0]["spec"]
    program, *arguments = shlex.split(job["entrypoint"])
    options = bulk._parser().parse_args(arguments)
    assert (program, options.ray, options.workers) == ("triton-rerank-bulk", "auto", (2, 8))
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == options.workers
    mounted = [mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
    assert all(any(path.is_relative_to(mount) for mount in mounted) for path in (options.input, options.output))


def test_the_runtime_starts_the_server_with_flags_that_there_are() -> None:
    container = objects("kserve.yaml")[0]["spec"]["containers"][0]
    assert container["command"][-2:] == ["-m", server.__name__]
    options = server._parser().parse_args(container["args"])
    assert str(options.model_repository) == "/mnt/models"
    entry_point = (chart.ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").partition("ENTRYPOINT [")[2]
    missing = [flag for flag in container["args"] if flag.startswith("--") and f'"{flag}"' not in entry_point]
    assert missing == [
        "--model-repository=/mnt/models",
        *[f for f in options.extra_args if f'"{f}"' not in entry_point],
    ]
    installation = find_installation()
    environment = triton_environment(installation.libraries)
    arguments = [str(installation.binary), "--help"]
    known = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = known.stdout + known.stderr
    assert not [flag for flag in options.extra_args if f"{flag.partition('=')[0]} " not in said]


def test_the_route_lets_through_what_the_client_calls_and_leads_to_the_charts_service() -> None:
    (rule,) = objects("grpcroute.yaml")[0]["spec"]["rules"]
    methods = {match["method"]["method"] for match in rule["matches"]}
    assert methods == {"ModelInfer", "ModelConfig", "ModelReady"}
    assert {match["method"]["service"] for match in rule["matches"]} == {"inference.GRPCInferenceService"}
    service = yaml.safe_load_all(
        chart.helm("template", "reranker", str(chart.CHART), "--show-only", "templates/service.yaml").stdout
    )
    offered = {(each["metadata"]["name"], port["port"]) for each in service if each for port in each["spec"]["ports"]}
    assert {(backend["name"], backend["port"]) for backend in rule["backendRefs"]} <= offered
