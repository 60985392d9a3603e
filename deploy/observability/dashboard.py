"""Writes dashboards/triton-rerank.json, the Grafana dashboard: gateway above, Triton below.

``python deploy/observability/dashboard.py`` after a change here; a test finds a file that is not what this writes, and
asks each panel's query of a real Prometheus.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "dashboards" / "triton-rerank.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
RATE = "[$__rate_interval]"
GATEWAY = "triton_rerank_gateway_"
ENCODER = '{model=~".+-encoder"}'  # the ensemble's own queue is always about empty, and averages over the steps hide it


class Panel(NamedTuple):
    """One graph: its queries by legend, in Grafana's unit; what to do about it stands in docs/operations.md."""

    title: str
    unit: str
    text: str
    queries: dict[str, str]


def quantiles(histogram: str, by: str = "") -> dict[str, str]:
    """Half, nineteen of twenty and 99 of 100 of the gateway's requests took at most so long."""
    buckets = f"sum by (le) (rate({GATEWAY}{histogram}_seconds_bucket{RATE}))"
    return {f"{by}p{100 * share:g}": f"histogram_quantile({share}, {buckets})" for share in (0.5, 0.95, 0.99)}


def mean(total: str, count: str, factor: str = "") -> str:
    """Of the encoder, by model: the growth of one counter over that of another."""
    above, below = (f"sum by (model) (rate(nv_inference_{name}{ENCODER}{RATE}))" for name in (total, count))
    return f"{above}{factor} / {below}"


def share(kind: str) -> str:
    """Of the pairs that the gateway answered."""
    pairs = f"{GATEWAY}pairs_total"
    return f'sum(rate({pairs}{{kind="{kind}"}}{RATE})) / sum(rate({pairs}{{kind="all"}}{RATE}))'


def grown(name: str) -> str:
    """A counter of our backends, a second, by model."""
    return f"sum by (model) (rate(triton_rerank_{name}_total{RATE}))"


def waiting() -> str:
    """Requests, on average: in Triton's queue, and inside the encoder where it schedules by itself."""
    queued = f"sum by (model) (rate(nv_inference_queue_duration_us{ENCODER}{RATE})) / 1e6"
    return f"{queued} + ({grown('waited_seconds')} or 0 * {queued})"


ROWS: dict[str, list[Panel]] = {
    "Gateway": [
        Panel("Requests", "reqps", "", {"{{status}}": f"sum by (status) (rate({GATEWAY}requests_total{RATE}))"}),
        Panel("Pairs", "ops", "", {"{{model}}": f'sum by (model) (rate({GATEWAY}pairs_total{{kind="all"}}{RATE}))'}),
        Panel("Latency", "s", "from the first byte to the answer", quantiles("request")),
        Panel("Its parts", "s", "", quantiles("waiting", "waiting ") | quantiles("scoring", "scoring ")),
        Panel(
            "Waiting room",
            "short",
            "pairs; bounds are --pairs-waiting and --pairs-in-flight",
            {"waiting": f"sum({GATEWAY}waiting_pairs)", "in flight": f"sum({GATEWAY}in_flight_pairs)"},
        ),
        Panel(
            "Refused, degraded, cancelled",
            "reqps",
            "docs/operations.md: Refused, Degraded",
            {"{{event}}": f"sum by (event) (rate({GATEWAY}events_total{RATE}))"},
        ),
        Panel("Share of pairs", "percentunit", "", {kind: share(kind) for kind in ("truncated", "cached")}),
        Panel("By key", "ops", "requests a second", {"{{key}}": f"sum by (key) (rate({GATEWAY}requests_total{RATE}))"}),
        Panel(
            "Servers behind it",
            "short",
            "addresses of its targets; what failed was sent again where that could help",
            {
                "known": "sum(triton_rerank_client_servers)",
                "ready": "sum(triton_rerank_client_servers_ready)",
                "failed attempts a second": f'sum(rate(triton_rerank_client_attempts_total{{outcome="failed"}}{RATE}))',
            },
        ),
        Panel(
            "Capacity of late, and connections",
            "short",
            "pairs finished a second, from which Retry-After is made",
            {
                "pairs/s {{instance}}": f"{GATEWAY}drain_pairs_per_second",
                "connections {{instance}}": f"{GATEWAY}connections",
            },
        ),
    ],
    "Triton": [
        Panel(
            "Requests that wait for the encoder",
            "short",
            "on average, all servers; what autoscaling asks for. docs/operations.md: Queue",
            {"{{model}}": waiting()},
        ),
        Panel(
            "A request in front of and in the encoder",
            "s",
            "mean; Triton has no percentiles",
            {
                "waits, {{model}}": mean("queue_duration_us", "request_success", " / 1e6"),
                "is computed, {{model}}": mean("compute_infer_duration_us", "request_success", " / 1e6"),
            },
        ),
        Panel("Pairs an execution", "short", "", {"{{model}}": mean("count", "exec_count")}),
        Panel(
            "Tokens",
            "ops",
            "a second, padding left out",
            {"asked, {{model}}": grown("tokens"), "computed, {{model}}": grown("computed_tokens")},
        ),
        Panel(
            "Tokens a pair",
            "short",
            "longer texts cost more",
            {"{{model}}": f"{grown('tokens')} / {grown('pairs')}"},
        ),
        Panel(
            "Share of pairs that are cut, of tokens that are padding",
            "percentunit",
            "docs/operations.md: Cut, Padding",
            {
                "cut, {{model}}": f"{grown('truncated_pairs')} / {grown('pairs')}",
                "padding, {{model}}": f"1 - {grown('computed_tokens')} / {grown('padded_tokens')}",
            },
        ),
        Panel(
            "A micro-batch",
            "short",
            "what one run of the engine computes",
            {
                "pairs, {{model}}": f"{grown('computed_pairs')} / {grown('micro_batches')}",
                "tokens, {{model}}": f"{grown('padded_tokens')} / {grown('micro_batches')}",
            },
        ),
        Panel(
            "Pairs that wait inside the encoder",
            "short",
            "continuous scheduling only",
            {"{{model}}": "sum by (model) (triton_rerank_waiting_pairs)"},
        ),
        Panel(
            "Pairs by server",
            "ops",
            "one that gets none: is it in the callers' list?",
            {"{{instance}}": f"sum by (instance) (rate(nv_inference_count{ENCODER}{RATE}))"},
        ),
        Panel(
            "Failures",
            "reqps",
            "REJECTED is overload. docs/operations.md: Refused, Failed",
            {"{{model}} {{reason}}": f"sum by (model, reason) (rate(nv_inference_request_failure{ENCODER}{RATE}))"},
        ),
        Panel(
            "Versions that answer",
            "short",
            "more than one after a rollout: docs/operations.md, Versions",
            {
                "{{model}}": f"count by (model) (sum by (model, version) "
                f"(rate(nv_inference_request_success{ENCODER}{RATE})) > 0)"
            },
        ),
        Panel(
            "Servers and gateways up",
            "short",
            "docs/operations.md: Down",
            {"{{job}}": 'sum by (job) (up{job=~".*rerank.*"})'},
        ),
        Panel(
            "Processor and memory of the machines",
            "percentunit",
            "",
            {
                "cpu {{instance}}": "nv_cpu_utilization",
                "memory {{instance}}": "nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes",
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        panels += [_panel(panel, 8 * (place % 3), y + 8 * (place // 3)) for place, panel in enumerate(members)]
        y += 8 * -(-len(members) // 3)
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": "triton-rerank",
        "title": "triton-rerank",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [source]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "legendFormat": legend, "expr": query}
            for place, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def written() -> str:
    """What the file must hold."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
