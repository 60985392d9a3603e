"""Objects of Prometheus' operator, KEDA, the Gateway API, KServe and KubeRay, held against their own schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from support import chart
from support.custom_resources import TOOLS, faults, field_faults

EXAMPLES = chart.ROOT / "deploy" / "examples"
Object = dict[str, Any]


def of_chart() -> list[Object]:
    values = ("--values", str(chart.CHART / "ci" / "keda-values.yaml"))
    switched_on = ("--set", "monitoring.podMonitor.enabled=true,monitoring.prometheusRule.enabled=true")
    objects = chart.render(*values, *switched_on)
    return [objects[kind] for kind in ("ScaledObject", "PodMonitor", "PrometheusRule")]


def route() -> Object:
    found: Object = yaml.safe_load((EXAMPLES / "grpcroute.yaml").read_text(encoding="utf-8"))
    return found


def test_their_schemas_take_what_the_chart_renders_and_the_route(tmp_path: Path) -> None:
    assert faults([*of_chart(), route()], tmp_path) == ""


def misspell(object_: Object, *path: Any) -> None:
    *way, last = path
    for step in way:
        object_ = object_[step]
    object_[f"{last}x"] = object_.pop(last)


def test_they_would_find_misspelt_fields_values_and_types(tmp_path: Path) -> None:
    objects = scaled, monitor, rules, routed = [*of_chart(), route()]
    misspell(scaled, "spec", "maxReplicaCount")
    misspell(monitor, "spec", "podMetricsEndpoints", 0, "interval")
    misspell(rules, "spec", "groups", 0, "rules", -1, "annotations")
    routed["spec"]["hostnames"] = ["not a host"]
    said = faults(objects, tmp_path)
    assert all(name in said for name in ("'\"maxReplicaCountx\"'", "intervalx", "annotationsx", "pattern")), said
    routed["spec"] = {"hostnames": 7}
    assert "TS2322" in faults([routed], tmp_path)


def kserve() -> list[tuple[Object, str]]:
    if not any(TOOLS.glob("lib/python3*/site-packages/kserve/models")):
        pytest.skip("KServe's models are not installed: `make deploy-tools` does it")
    objects = list(yaml.safe_load_all((EXAMPLES / "kserve.yaml").read_text(encoding="utf-8")))
    kinds = [each["apiVersion"].split("/")[1].capitalize() + each["kind"] for each in objects]
    assert kinds == ["V1alpha1ServingRuntime", "V1beta1InferenceService"]
    return list(zip(objects, kinds, strict=True))


def test_kserves_own_models_have_the_fields_of_the_example() -> None:
    assert [fault for value, kind in kserve() for fault in field_faults(value, kind)] == []


def test_they_would_find_a_misspelt_field_and_a_wrong_type() -> None:
    (runtime, of_runtime), (service, of_service) = kserve()
    misspell(runtime, "spec", "supportedModelFormats", 0, "autoSelect")
    service["spec"]["predictor"]["model"]["storageUri"] = ["pvc://x"]
    service["spec"]["predictor"]["minReplicas"] = "2"
    assert field_faults(runtime, of_runtime) == [
        ".spec.supportedModelFormats[0].autoSelectx: unknown to V1alpha1SupportedModelFormat"
    ]
    assert sorted(field_faults(service, of_service)) == [
        ".spec.predictor.minReplicas: no int",
        ".spec.predictor.model.storageUri: no str",
    ]


def ray_job() -> Object:
    found: Object = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    return found


def test_kuberays_own_types_have_the_fields_of_the_job() -> None:
    assert field_faults(ray_job(), "RayJob") == []


def test_they_would_find_misspelt_and_missing_fields_and_numbers_for_texts() -> None:
    job = ray_job()
    misspell(job, "spec", "shutdownAfterJobFinishes")
    misspell(job, "spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas")
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    job["spec"]["backoffLimit"] = "3"
    assert sorted(field_faults(job, "RayJob")) == [
        ".spec.backoffLimit: no int",
        ".spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus: no str",
        ".spec.rayClusterSpec.workerGroupSpecs[0].minReplicas: missing",
        ".spec.rayClusterSpec.workerGroupSpecs[0].minReplicasx: unknown to WorkerGroupSpec",
        ".spec.shutdownAfterJobFinishesx: unknown to RayJobSpec",
    ]
