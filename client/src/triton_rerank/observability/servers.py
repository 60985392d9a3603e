"""What gRPC knows of the servers behind this process's `TritonScorer`, for Prometheus.

Source: gRFC A14 (channelz). grpcio-channelz, which would read the same, wants another protobuf than tritonclient.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from grpc._cython import cygrpc

from triton_rerank.triton.connections import in_use

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_PREFIX = "triton_rerank_client_"
_OUTCOMES = {"ok": "callsSucceeded", "failed": "callsFailed"}  # as gRPC counts them


class ServersCollector:
    """A collector of prometheus_client: servers and attempts of every `TritonScorer` that this process uses.

    ``triton_rerank_client_servers`` is how many addresses the target stands for, ``…_servers_ready`` how many of them
    have a connection that is ready, by ``target``. ``…_attempts_total`` counts what was sent to servers by ``target``
    and ``outcome``, ``ok`` or ``failed``: what gRPC tried again counts each time, so a failure is seen here though the
    caller got its answer. gRPC tells no codes of what it tries again. It is asked when the metrics are read; a gRPC
    that does not tell leaves them out.

    `MeteredScorer` registers one; ``registry.register(ServersCollector())`` does where there is no such scorer.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._counted: dict[str, int] = {}  # by subchannel and outcome, of those that are gone too
        self._attempts: dict[tuple[str, str], int] = defaultdict(int)

    def describe(self) -> Iterable[Metric]:
        """None before they are read, so that nothing is asked when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        if self._process != os.getpid():  # a fork: what its parent sent is not its own, and the lock may have been held
            self._begin()
        if not hasattr(cygrpc, "channelz_get_top_channels"):  # it is not public, so a later gRPC may lack it
            return
        known = GaugeMetricFamily(_PREFIX + "servers", "Addresses that a target stands for.", labels=["target"])
        ready = GaugeMetricFamily(_PREFIX + "servers_ready", "Of these, with a ready connection.", labels=["target"])
        sent = CounterMetricFamily(
            _PREFIX + "attempts", "Requests that servers got, those sent again included.", labels=["target", "outcome"]
        )
        with self._lock:
            for target, subchannels in _subchannels().items():
                states = [(channel["target"], channel["state"]["state"]) for channel in subchannels.values()]
                known.add_metric([target], len({address for address, _ in states}))
                ready.add_metric([target], len({address for address, state in states if state == "READY"}))
                self._count(target, subchannels)
            for labels, total in self._attempts.items():
                sent.add_metric(list(labels), total)
        yield from (known, ready, sent)

    def _count(self, target: str, subchannels: dict[str, Any]) -> None:
        for key, data in subchannels.items():
            for outcome, field in _OUTCOMES.items():
                place, total = f"{key} {outcome}", int(data[field])
                self._attempts[target, outcome] += total - self._counted.get(place, 0)
                self._counted[place] = total


def _subchannels() -> dict[str, dict[str, Any]]:
    """By the scorers' targets, and by gRPC's number of the subchannel. Channels of the same arguments share some."""
    targets = {address: target for target, address in in_use()}
    found: dict[str, dict[str, Any]] = {target: {} for target in targets.values()}
    for channel in _channels():
        target = targets.get(channel["data"]["target"].removeprefix("dns:///"))
        if target is None:
            continue
        for reference in channel["subchannelRef"]:
            try:
                told = json.loads(cygrpc.channelz_get_subchannel(int(reference["subchannelId"])))
            except ValueError:  # it was closed meanwhile
                continue
            found[target][reference["subchannelId"]] = told["subchannel"]["data"]
    return found


def _channels() -> Iterator[Any]:
    first = 0
    while True:
        page = json.loads(cygrpc.channelz_get_top_channels(first))
        channels = page.get("channel", [])
        yield from channels
        if page.get("end") or not channels:
            return
        first = int(channels[-1]["ref"]["channelId"]) + 1
