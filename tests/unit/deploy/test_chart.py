"""deploy/chart without a cluster: the real Helm, the API's own schemas, and the rules that neither of the two knows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import chart, image

from triton_rerank_server.launch.environment import triton_environment
from triton_rerank_server.launch.installation import find_installation

CI = sorted((chart.CHART / "ci").glob("*-values.yaml"))
VALUES = pytest.mark.parametrize("values", CI, ids=lambda path: path.name.removesuffix("-values.yaml"))
KUBERNETES = ("1.30", "1.33", "1.37")
QUANTITY = re.compile(r"^([0-9]+(\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")


def test_the_linter_finds_nothing() -> None:
    done = chart.helm("lint", "--strict", "--quiet", str(chart.CHART), *[f"--values={path}" for path in CI[:1]])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_apis_own_schemas_take_every_variant(tmp_path: Path) -> None:
    files = []
    for path in CI:
        done = chart.template("--values", str(path))
        assert done.returncode == 0, done.stderr
        files.append(tmp_path / path.name)
        files[-1].write_text(done.stdout)
    for version in KUBERNETES:
        newer = [] if version >= "1.35" else ["oci-values.yaml"]  # the chart refuses it there, see below
        done = validate(version, *(file for file in files if file.name not in newer))
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_schemas_would_find_a_misspelt_field(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(chart.template().stdout.replace("terminationGracePeriodSeconds", "terminationGracePeriodSecond"))
    done = validate("1.33", broken)
    assert done.returncode != 0
    assert "terminationGracePeriodSecond" in done.stdout + done.stderr


def validate(version: str, *files: Path) -> subprocess.CompletedProcess[str]:
    program = chart.tool("kubernetes-validate")
    arguments: list[str | Path] = [program, "-k", version, "--strict", "--quiet", *files]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


# --- rules that the schemas do not know ----------------------------------------------------------------------------


def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


@VALUES
def test_a_rollout_can_go_on_and_quantities_are_quantities(values: Path) -> None:
    objects = chart.render("--values", str(values))
    rolling = objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert sorted((rolling["maxSurge"], rolling["maxUnavailable"])) == [0, 1]
    (container,) = pod(objects)["containers"]
    quantities = [q for kind in ("requests", "limits") for q in container["resources"].get(kind, {}).values()]
    assert quantities
    assert all(QUANTITY.match(str(quantity)) for quantity in quantities)
    assert all(
        QUANTITY.match(v["emptyDir"].get("sizeLimit", "1Mi")) for v in pod(objects)["volumes"] if "emptyDir" in v
    )


@VALUES
def test_the_grace_holds_the_drain_and_the_exit_timeout(values: Path) -> None:
    spec = pod(chart.render("--values", str(values)))
    (container,) = spec["containers"]
    drain = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    exit_timeout = int(flag(container["args"], "--exit-timeout-secs"))
    assert spec["terminationGracePeriodSeconds"] >= drain + exit_timeout + 5


@VALUES
def test_the_pod_fits_the_restricted_security_profile(values: Path) -> None:
    spec = pod(chart.render("--values", str(values)))
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in image.of(
        image.SERVING, "USER"
    )
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()


@VALUES
def test_selectors_are_the_pods_labels(values: Path) -> None:
    objects = chart.render("--values", str(values))
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(each["spec"]["selector"] for kind, each in objects.items() if kind.startswith("Service")),
        *(each["spec"]["selector"]["matchLabels"] for kind, each in objects.items() if kind == "PodMonitor"),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_ports_are_those_that_the_image_opens() -> None:
    (container,) = pod(chart.render())["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    exposed = [int(port) for line in image.of(image.SERVING, "EXPOSE") for port in line.split()]
    assert sorted(ports.values()) == exposed
    assert container["readinessProbe"]["grpc"]["port"] == ports["grpc"]


def test_every_flag_is_one_that_triton_knows() -> None:
    installation = find_installation()
    environment = triton_environment(installation.libraries)
    help_text = subprocess.run(
        [installation.binary, "--help"], env=environment, capture_output=True, text=True, timeout=60
    )
    known = set(re.findall(r"^  (--[a-z-]+)", help_text.stdout + help_text.stderr, flags=re.MULTILINE))
    given = {argument.split("=", 1)[0] for path in CI for argument in chart.container_args("--values", str(path))}
    assert {"--grpc-max-connection-age", "--grpc-restricted-protocol"} <= given
    assert given <= known


def test_nothing_is_written_outside_the_mounts() -> None:
    spec = pod(chart.render())
    mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert {"/tmp", "/dev/shm", "/var/cache/triton-rerank"} <= mounts


# --- values that mean something ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_an_autoscaler_decides_how_many(kind: str) -> None:
    objects = chart.render("--values", str(chart.CHART / "ci" / f"{kind}-values.yaml"))
    assert "replicas" not in objects["Deployment"]["spec"]
    scaler = objects["HorizontalPodAutoscaler" if kind == "hpa" else "ScaledObject"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]


def test_keda_is_asked_with_fields_that_it_knows() -> None:
    """Its CRD's schema lets unknown fields pass, so the names stand here."""
    spec = chart.render("--values", str(chart.CHART / "ci" / "keda-values.yaml"))["ScaledObject"]["spec"]
    assert set(spec) == {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "advanced", "triggers"}
    (trigger,) = spec["triggers"]
    assert set(trigger) == {"type", "metricType", "metadata"}
    assert set(trigger["metadata"]) == {"serverAddress", "threshold", "query"}
    assert 'model=~".+-encoder"' in trigger["metadata"]["query"]


def test_a_mig_slice_is_a_resource_of_its_own_name() -> None:
    objects = chart.render("--values", str(chart.CHART / "ci" / "mig-values.yaml"))
    limits = pod(objects)["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/mig-1g.10gb"] == 1
    assert "nvidia.com/gpu" not in limits


def test_models_are_mounted_read_only() -> None:
    for kind, volume in (("pvc", "persistentVolumeClaim"), ("oci", "image")):
        spec = pod(chart.render("--values", str(chart.CHART / "ci" / f"{kind}-values.yaml")))
        (models,) = [each for each in spec["volumes"] if each["name"] == "models"]
        assert volume in models
        (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "models"]
        assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_the_secret_for_the_restricted_protocol_is_never_a_literal() -> None:
    (container,) = pod(chart.render("--values", str(chart.CHART / "ci" / "pvc-values.yaml")))["containers"]
    assert flag(container["args"], "--grpc-restricted-protocol").endswith(":$(RESTRICTED_NAME)=$(RESTRICTED_VALUE)")
    assert all("secretKeyRef" in variable["valueFrom"] for variable in container["env"])


def test_the_network_policy_lets_nothing_out() -> None:
    spec = chart.render()["NetworkPolicy"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == []
    assert [rule["ports"][0]["port"] for rule in spec["ingress"]] == [8001, 8002]


def test_the_rule_object_holds_the_rules_that_promtool_tests() -> None:
    rule = chart.render("--set", "monitoring.prometheusRule.enabled=true")["PrometheusRule"]
    alerts = [each.get("alert") for group in rule["spec"]["groups"] for each in group["rules"]]
    assert "TritonRerankQueueIsLong" in alerts


# --- wrong values --------------------------------------------------------------------------------------------------

REFUSED = {
    "a misspelt value": (["--set", "replcas=1"], "replcas"),
    "a misspelt value inside": (["--set", "gpu.cuont=1"], "cuont"),
    "replicas beside an autoscaler": (
        ["--set", "replicas=3,autoscaling.kind=hpa"],
        "replicas is 3 and autoscaling.kind is hpa: an autoscaler decides how many",
    ),
    "an unknown autoscaler": (["--set", "autoscaling.kind=vpa"], "autoscaling"),
    "fewer at most than at least": (
        ["--set", "autoscaling.kind=hpa,autoscaling.minReplicas=9,autoscaling.maxReplicas=3"],
        "autoscaling.minReplicas is 9, above maxReplicas 3",
    ),
    "keda without an address": (["--set", "autoscaling.kind=keda"], "autoscaling.prometheusAddress is empty"),
    "a claim without a name": (["--set", "models.source=pvc"], "models.pvc.claimName is empty"),
    "an artefact without a digest": (
        ["--set", "models.source=oci,models.oci.reference=registry.example/models:latest"],
        "must end with @sha256:",
    ),
    "a drain of minutes": (["--set", "drain.seconds=3000"], "drain"),
    "a quantity that is none": (["--set", "resources.limits.memory=4Gb"], "memory"),
    "a flag that is none": (["--set", "arguments={model-repository=/x}"], "arguments"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_by_name(what: str) -> None:
    arguments, words = REFUSED[what]
    done = chart.template(*arguments)
    assert done.returncode != 0
    assert words in done.stderr


def test_an_image_volume_is_refused_on_an_old_cluster() -> None:
    done = chart.template("--values", str(chart.CHART / "ci" / "oci-values.yaml"), kube="1.34.2")
    assert done.returncode != 0
    assert "this cluster is v1.34.2: image volumes need Kubernetes 1.35" in done.stderr


def test_a_cluster_without_the_sleep_action_is_refused() -> None:
    done = chart.template(kube="1.29.9")
    assert done.returncode != 0
    assert "1.30" in done.stderr


@pytest.mark.parametrize(
    "value", ["autoscaling.kind=keda,autoscaling.prometheusAddress=http://p:9090", "monitoring.podMonitor.enabled=true"]
)
def test_an_object_without_its_crd_is_refused_before_anything_is_applied(value: str) -> None:
    done = chart.template("--set", value, crds=())
    assert done.returncode != 0
    assert "install its CRDs first, or leave it off" in done.stderr


def flag(arguments: list[str], name: str) -> str:
    (value,) = [argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{name}=")]
    return value
