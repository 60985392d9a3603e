"""Tells Triton's own /metrics what a backend counts, once a second and from a thread of its own.

A call of Triton's costs some 25 us, which no request shall pay: whoever counts adds to plain numbers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)
PERIOD_S = 1.0
TOTAL = "_total"  # ends the name of a counter; what has another name is a gauge


class Meters:
    """Reads totals again and again, and tells Triton by how much they moved.

    The instances of a model, processes each, share one series, since Triton adds what they tell.

    Args:
        utilities: Triton's module for backends; metrics are left out where it has none.
        labels: of each series.
        texts: what each metric means, by its name.
        read: gives the values by name; called from the thread.
    """

    def __init__(
        self,
        utilities: Any,
        labels: Mapping[str, str],
        texts: Mapping[str, str],
        read: Callable[[], Mapping[str, float]],
    ) -> None:
        self._read = read
        self._told = dict.fromkeys(texts, 0.0)
        self._ending = threading.Event()
        self._families: list[Any] = []  # must outlive their series
        self._series: dict[str, Any] = {}
        try:
            kinds = utilities.MetricFamily
            for name, text in texts.items():
                kind = kinds.COUNTER if name.endswith(TOTAL) else kinds.GAUGE
                self._families.append(kinds(name=name, description=text, kind=kind))
                self._series[name] = self._families[-1].Metric(labels=dict(labels))
        except Exception as exc:  # noqa: BLE001 - a Triton that was built without metrics, or is older than they are
            _log.warning("no metrics of ours: %r", exc)
            self._series.clear()
            return
        self._thread = threading.Thread(target=self._run, name="meters", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell the last counts, take back what waits no more, and end the thread."""
        self._ending.set()
        if self._series:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ending.wait(PERIOD_S):
                self._tell(self._read())
            last = self._read()
            self._tell({name: value if name.endswith(TOTAL) else 0.0 for name, value in last.items()})
        except Exception:  # noqa: BLE001 - whatever it is, requests are answered without metrics too
            _log.exception("metrics are not told any more")

    def _tell(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if value != self._told[name]:
                self._series[name].increment(value - self._told[name])
                self._told[name] = value
