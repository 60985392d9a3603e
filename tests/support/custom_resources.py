"""Custom resources held against their owners' schemas, in the forms in which npm and PyPI have them.

npm's packages have a type and a validator for each kind: TypeScript's compiler finds fields that the type does not
have, which the validator lets pass, and the validator finds values that the type does not know. KServe's wheel has
classes with the names and types of the fields; they are read, not imported, since their dependencies are large.
KubeRay's are in no package of either: `KUBERAY` names the fields of its Go types (ray-operator/apis/ray/v1, 2025).
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.chart import ROOT

TOOLS = ROOT / ".venv-deploy"
PACKAGES = {
    "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
    "keda.sh": "@kubernetes-models/keda",
    "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
}
CHECKED = ("--allowJs", "--checkJs", "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext")
KUBERAY: dict[str, dict[str, str]] = {
    "RayJob": {"apiVersion": "str", "kind": "str", "metadata": "object", "spec": "RayJobSpec"},
    "RayJobSpec": {
        **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"), "str"),
        **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"), "int"),
        **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), "bool"),
        **dict.fromkeys(("metadata", "clusterSelector"), "texts"),
        **dict.fromkeys(("submitterPodTemplate", "submitterConfig", "deletionStrategy", "managedBy"), "object"),
        "rayClusterSpec": "RayClusterSpec",
    },
    "RayClusterSpec": {
        "headGroupSpec": "HeadGroupSpec",
        "workerGroupSpecs": "list[WorkerGroupSpec]",
        "rayVersion": "str",
        **dict.fromkeys(("enableInTreeAutoscaling", "suspend"), "bool"),
        "autoscalerOptions": "object",
        "headServiceAnnotations": "texts",
    },
    "HeadGroupSpec": {
        "serviceType": "str",
        "headService": "object",
        "enableIngress": "bool",
        "rayStartParams": "texts",
        "template": "object",
    },
    "WorkerGroupSpec": {
        "groupName": "str",
        **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts"), "int"),
        "rayStartParams": "texts",
        "template": "object",
        "scaleStrategy": "object",
    },
}
_WANTED = {
    "RayClusterSpec": {"headGroupSpec"},
    "HeadGroupSpec": {"rayStartParams", "template"},
    "WorkerGroupSpec": {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}  # by KubeRay's types
_SCALARS = {"str": str, "bool": bool, "int": int, "object": object}


def faults(objects: list[dict[str, Any]], folder: Path) -> str:
    """What npm's schemas say against these objects; empty if nothing."""
    node, compiler = shutil.which("node"), TOOLS / "node_modules" / ".bin" / "tsc"
    if node is None or not compiler.exists():
        pytest.skip("the schemas are not installed: `make deploy-tools` does it where npm is")
    lines = []
    for number, each in enumerate(objects):
        api, kind = each["apiVersion"], each["kind"]
        lines.append(f'import {{ {kind} as K{number} }} from "{PACKAGES[api.split("/")[0]]}/{api}/{kind}";')
        rest = {name: value for name, value in each.items() if name not in ("apiVersion", "kind")}
        lines.append(f"new K{number}({json.dumps(rest)}).validate();")
    file = folder / "objects.mjs"
    file.write_text("\n".join(lines))
    (folder / "node_modules").unlink(missing_ok=True)
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    said = ""
    for command in ([str(compiler), *CHECKED, str(file)], [node, str(file)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        said += done.stdout + done.stderr if done.returncode else ""
    return said


def field_faults(value: Any, kind: str, path: str = "") -> list[str]:
    """Fields that a class of KServe's or KubeRay's does not have or lacks, and values of another type.

    Pods' own fields are not looked into.

    Args:
        value: of the object.
        kind: as KServe's models write types: ``V1alpha1ServingRuntime``, ``list[str]``; "texts" is names to strings.
        path: of the value in the object.
    """
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: no list"]
        return [fault for n, each in enumerate(value) for fault in field_faults(each, inner[1], f"{path}[{n}]")]
    if kind == "texts":
        return [f"{path}.{name}: no str" for name, inside in value.items() if not isinstance(inside, str)]
    if kind in _SCALARS:
        return [] if isinstance(value, _SCALARS[kind]) else [f"{path}: no {kind}"]
    fields = _fields(kind)
    if fields is None:
        return []
    found = [f"{path}.{name}: unknown to {kind}" for name in value if name not in fields]
    found += [f"{path}.{name}: missing" for name in sorted(_WANTED.get(kind, set()) - set(value))]
    known = {name: inside for name, inside in value.items() if name in fields}
    return found + [f for name, inside in known.items() for f in field_faults(inside, fields[name], f"{path}.{name}")]


def _fields(kind: str) -> dict[str, str] | None:
    """Type by name as YAML has it; None for Kubernetes' own kinds, which the wheel has not."""
    if kind in KUBERAY:
        return KUBERAY[kind]
    (models,) = TOOLS.glob("lib/python3*/site-packages/kserve/models")
    file = models / (re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower() + ".py")
    if not file.exists():
        return None
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("openapi_types", "attribute_map")
    }
    return {name: tables["openapi_types"][attribute] for attribute, name in tables["attribute_map"].items()}
