"""A machine whose settings have known speeds and whose clock is ours, for the tuner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from triton_rerank_bench.load.generator import Latency, LoadFigures
from triton_rerank_bench.tune.findings import Schedule, Wanted
from triton_rerank_bench.tune.knobs import BOUNDED, Ground, Setting
from triton_rerank_bench.tune.search import Tuner
from triton_rerank_bench.tune.servers import Level, SettingServers

PAIRS = 100
EXPORTED = Setting("int8", 1, 0, 256, 0, BOUNDED, (32, 64, 128, 512))
START_S = 4.0

Speed = Callable[[Setting], float]


class FakeBench:
    """Serves one call at a time at the setting's speed; callers queue.

    Args:
        speed: setting -> pairs a second.
        wobble: number of the measurement -> factor of the speed.
        fail: setting -> an error to raise, or None.
    """

    def __init__(
        self,
        speed: Speed,
        *,
        wobble: Callable[[int], float] = lambda _: 1.0,
        fail: Callable[[Setting, Level], BaseException | None] = lambda *_: None,
    ) -> None:
        self.now = 0.0
        self.measured: list[tuple[Setting, Level]] = []
        self._speed, self._wobble, self._fail = speed, wobble, fail
        self._kept: Setting | None = None
        self._running: set[Setting] = set()

    def clock(self) -> float:
        return self.now

    def keep(self, setting: Setting) -> None:
        self._kept = setting.served

    def measure(self, setting: Setting, level: Level, duration_s: float, warm_up_s: float) -> LoadFigures:
        error = self._fail(setting, level)
        if error is not None:
            raise error
        if setting.served not in self._running:
            self._running = {setting.served, *({self._kept} & self._running if self._kept else set())}
            self.now += START_S
        self.measured.append((setting, level))
        speed = self._speed(setting) * self._wobble(len(self.measured))
        pairs = level.pairs or PAIRS
        latency_ms = 1e3 * (level.concurrency or 1) * pairs / speed
        self.now += duration_s + warm_up_s + latency_ms / 1e3
        return figures(speed, latency_ms, level)


def figures(pairs_per_s: float, p99_ms: float, level: Level | None = None, **other: object) -> LoadFigures:
    level = level or Level(1)
    made = LoadFigures(
        workload="passages",
        mode="closed" if level.concurrency else "open",
        concurrency=level.concurrency or None,
        rate=level.rate or None,
        duration_s=1.0,
        calls=50,
        errors={},
        pairs_per_s=pairs_per_s,
        tokens_per_s=90 * pairs_per_s,
        latency=Latency(p99_ms * 0.9, p99_ms * 0.95, p99_ms, p99_ms),
        queue_ms=0.5,
        compute_ms=9.0,
        requests_per_execution=1.0,
        rows_per_execution=100.0,
        padded_over_real=1.2,
        peak_memory_bytes=10**8,
    )
    return replace(made, **other)  # type: ignore[arg-type]


def ground_of(exported: Setting = EXPORTED, **other: object) -> Ground:
    ground = Ground(exported, cores=4, on_gpu=False, fixed_shapes=False, most_pairs=PAIRS)
    return replace(ground, **other)  # type: ignore[arg-type]


def tuner(
    bench: FakeBench,
    *knobs: str,
    p99_ms: float | None = None,
    rate: float | None = None,
    budget_s: float = 3600.0,
    repositories: tuple[str, ...] = ("int8",),
) -> Tuner:
    return Tuner(
        cast(SettingServers, bench),
        {label: ground_of(replace(EXPORTED, repository=label)) for label in repositories},
        Wanted(p99_ms, rate, knobs),
        Schedule.of(budget_s),
        pairs_per_call=PAIRS,
        on_step=lambda *_: None,
        clock=bench.clock,
    )
