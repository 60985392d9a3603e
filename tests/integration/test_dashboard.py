"""The dashboard and the rules, asked of a real Prometheus that scraped a real Triton and gateway under load."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from support import chart
from support.gateways import process
from support.load import Load
from support.tritons import NAME, edited, free_ports, only_bert, start, wait_until

from triton_rerank.contract import ENCODER_SUFFIX, SCHEDULING

OBSERVABILITY = chart.ROOT / "deploy" / "observability"
FILE = OBSERVABILITY / "dashboards" / "triton-rerank.json"
BODY = {"query": "how to zip a file", "documents": ["gzip shrinks files", "the cat sat on the mat"] * 4}
BOUNDS = ("--pairs-in-flight", "16", "--pairs-waiting", "16", "--open-metrics")  # eight callers are too many
CONFIG = """
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [{servers}, {gateway_rules}]
scrape_configs:
  - job_name: triton-rerank
    static_configs: [{{ targets: ["{triton}"], labels: {{ namespace: search, pod: r-triton-rerank-0 }} }}]
  - {{ job_name: rerank-gateway, static_configs: [{{ targets: ["{gateway}"] }}] }}
"""


def queries() -> list[tuple[str, str]]:
    """Title and expression of every panel, as Grafana would ask it with samples of each second."""
    panels = [panel for panel in json.loads(FILE.read_text())["panels"] if panel["type"] != "row"]
    return [(each["title"], target["expr"]) for each in panels for target in each["targets"]]


def test_the_file_is_what_the_script_writes() -> None:
    assert FILE.read_text() == runpy.run_path(str(OBSERVABILITY / "dashboard.py"))["written"]()


def test_no_panel_asks_for_the_ensembles_own_queue() -> None:
    of_triton = [query for _, query in queries() if "nv_inference_" in query]
    assert of_triton
    assert all(query.count("nv_inference_") == query.count('{model=~".+-encoder"}') for query in of_triton)


@pytest.fixture(scope="module")
def prometheus(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """It scrapes both every second while callers ask more than is let in."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on PATH: Debian's package prometheus has it")
    folder = tmp_path_factory.mktemp("prometheus")
    repository = only_bert(tiny_repository, folder / "model_repository")
    with edited(repository / f"{NAME}{ENCODER_SUFFIX}") as config:
        config.parameters[SCHEDULING].string_value = "continuous"  # it has every metric
    with (
        free_ports(1) as (port,),
        start(repository) as triton,
        process(triton.grpc_target, *BOUNDS, log=folder / "gateway.log") as (_, url),
        httpx.Client(base_url=url, timeout=60) as caller,
        Load(lambda _: caller.post("/v1/rerank", json=BODY), threads=8, pause_s=0.02),
    ):
        config, log = folder / "prometheus.yaml", folder / "prometheus.log"
        rules = {
            "servers": chart.CHART / "files" / "rules.yaml",
            "gateway_rules": OBSERVABILITY / "gateway-rules.yaml",
        }
        gateway = url.removeprefix("http://")
        config.write_text(CONFIG.format(triton=triton.metrics_target, gateway=gateway, **rules))
        address = f"127.0.0.1:{port}"
        flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
        with log.open("wb") as output, subprocess.Popen([program, *flags], stdout=output, stderr=output) as child:
            try:
                with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
                    assert wait_until(lambda: answers(client), 60), log.read_text()
                    yield client
            finally:
                child.kill()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def values(client: httpx.Client, query: str) -> list[float]:
    """Finite ones of every series; a query that is wrong fails."""
    found: dict[str, Any] = client.get("/api/v1/query", params={"query": query}).json()
    assert found["status"] == "success", (query, found)
    numbers = [float(series["value"][1]) for series in found["data"]["result"]]
    return [number for number in numbers if math.isfinite(number)]


def test_prometheus_answers_the_query_of_every_panel(prometheus: httpx.Client) -> None:
    for title, query in queries():
        asked = query.replace("$__rate_interval", "15s")
        assert wait_until(lambda asked=asked: bool(values(prometheus, asked)), 60), (title, asked)  # type: ignore[misc]


def test_what_autoscalers_ask_for_is_answered_for_each_pod(prometheus: httpx.Client) -> None:
    """The query of the chart's ScaledObject, and the rule for prometheus-adapter in which it puts names and labels."""
    keda = chart.render("--values", str(chart.CHART / "ci" / "keda-values.yaml"))["ScaledObject"]
    (trigger,) = keda["spec"]["triggers"]
    (rule,) = yaml.safe_load((OBSERVABILITY / "adapter.yaml").read_text())["rules"]
    (series,) = re.findall(r"\w+(?={)", rule["seriesQuery"])
    names = {"GroupBy": "pod", "Series": series, "LabelMatchers": 'namespace="search"'}
    by_adapter = re.sub(r"<<\.(\w+)>>", lambda found: names[found[1]], rule["metricsQuery"])
    for query in (trigger["metadata"]["query"], by_adapter):
        asked = query.replace("[1m]", "[15s]")
        assert wait_until(lambda asked=asked: any(v > 0 for v in values(prometheus, asked)), 60), asked  # type: ignore[misc]


def test_prometheus_evaluates_every_rule(prometheus: httpx.Client) -> None:
    def states() -> set[str]:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        assert len(groups) == 2
        return {rule["health"] for group in groups for rule in group["rules"]}

    assert wait_until(lambda: states() == {"ok"}, 30), states()
