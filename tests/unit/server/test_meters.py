"""Counts that are told from a thread, and what Triton's failing means for requests: nothing."""

from __future__ import annotations

import logging
import threading
import types
from typing import Any

import pytest

from triton_rerank_server.backends import meters
from triton_rerank_server.backends.meters import Meters

TEXTS = {"a_total": "what was done", "b": "what waits"}


class Family:
    """As `pb_utils.MetricFamily`: a series adds."""

    COUNTER, GAUGE = "counter", "gauge"
    made: list[Family]
    error: Exception | None = None

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.description, self.kind, self.value = name, description, kind, 0.0
        self.moves = 0
        type(self).made.append(self)

    def Metric(self, labels: dict[str, str]) -> Family:  # noqa: N802 - Triton's name
        self.labels = labels
        return self

    def increment(self, by: float) -> None:
        self.moves += 1
        if self.error:
            raise self.error
        self.value += by


class Values:
    """What is read, and when it was."""

    def __init__(self) -> None:
        self.now = {"a_total": 0.0, "b": 0.0}
        self.read = threading.Semaphore(0)

    def __call__(self) -> dict[str, float]:
        self.read.release()
        return dict(self.now)

    def wait(self) -> None:
        """Until what was set before this call was told."""
        while self.read.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.read.acquire(timeout=30)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(meters, "PERIOD_S", 0.01)
    family = type("MetricFamily", (Family,), {"made": []})
    return types.SimpleNamespace(MetricFamily=family)


def test_only_what_moved_is_told_and_at_the_end_nothing_waits(triton: Any) -> None:
    values = Values()
    meter = Meters(triton, {"model": "m"}, TEXTS, values)
    counter, gauge = triton.MetricFamily.made
    assert [(each.name, each.description, each.kind, each.labels) for each in (counter, gauge)] == [
        ("a_total", "what was done", "counter", {"model": "m"}),
        ("b", "what waits", "gauge", {"model": "m"}),
    ]
    values.wait()
    assert (counter.moves, gauge.moves) == (0, 0)
    values.now = {"a_total": 3.0, "b": 5.0}
    values.wait()
    values.now = {"a_total": 7.0, "b": 2.0}
    values.wait()
    assert (counter.value, gauge.value) == (7.0, 2.0)
    values.now["a_total"] = 8.0
    meter.close()
    assert (counter.value, gauge.value) == (8.0, 0.0)


def test_a_triton_without_metrics_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Meters(types.SimpleNamespace(), {}, TEXTS, Values()).close()
    assert "no metrics of ours" in caplog.text


def test_a_triton_that_does_not_take_them_is_said_once(triton: Any, caplog: pytest.LogCaptureFixture) -> None:
    triton.MetricFamily.error = RuntimeError("the registry is gone")
    values = Values()
    values.now["a_total"] = 1.0
    meter = Meters(triton, {}, TEXTS, values)
    meter._thread.join(30)
    meter.close()
    assert caplog.text.count("metrics are not told any more") == 1
    assert triton.MetricFamily.made[0].moves == 1
