"""Recording and alert rules, run by the real promtool on examples."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from support import chart
from support.gateways import DOCUMENTS, QUERY, fake, running

OBSERVABILITY = chart.ROOT / "deploy" / "observability"
SERVERS = chart.CHART / "files" / "rules.yaml"
GATEWAY = OBSERVABILITY / "gateway-rules.yaml"
both_files = pytest.mark.parametrize("rules", [SERVERS, GATEWAY], ids=["servers", "gateway"])


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH: Debian's package prometheus has it")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@both_files
def test_the_rules_are_valid(rules: Path) -> None:
    done = promtool("check", "rules", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("examples", ["rules_test.yaml", "day_rules_test.yaml", "gateway_rules_test.yaml"])
def test_the_rules_say_what_the_examples_expect(examples: str) -> None:
    done = promtool("test", "rules", str(OBSERVABILITY / examples))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_of_prometheus_is_valid() -> None:
    done = promtool("check", "config", "--syntax-only", str(OBSERVABILITY / "prometheus.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@both_files
def test_every_alert_has_a_runbook_that_names_a_paragraph_with_the_alert_in_it(rules: Path) -> None:
    text = (chart.ROOT / "docs" / "operations.md").read_text()
    paragraphs = dict(re.findall(r"^### (.+?)\n(.+?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL))
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    alerts = [rule for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        heading = re.search(r"docs/operations\.md, (\w+)$", alert["annotations"]["runbook"])
        assert heading is not None, alert
        assert f"`{alert['alert']}`" in paragraphs[heading.group(1)]


def test_the_rules_for_the_gateway_ask_for_metrics_that_it_has() -> None:
    asked = set(re.findall(r"triton_rerank_gateway_\w+", str(yaml.safe_load(GATEWAY.read_text()))))
    with running(models=fake()) as gateway:
        assert gateway.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}).status_code == 200
        text = gateway.get("/metrics").text
    told = set(re.findall(r"^(?:# TYPE )?(triton_rerank_gateway_\w+)", text, re.MULTILINE))
    assert asked <= told | {f"{name}_total" for name in told}
