"""Runs the servers of settings that are compared, and loads them.

Two at most run at a time: the one that the others are held against, so that it can be measured again beside each of
them, and the one that is being tried. A server without calls computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from triton_rerank_bench.load.generator import Load, LoadFigures
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.served import ServedModel, serve
from triton_rerank_bench.tune.knobs import Setting
from triton_rerank_bench.tune.variants import config_diff, variant
from triton_rerank_bench.workloads import Workload, passages

N_LISTS_OF_A_SIZE = 4  # that calls of one size take in turn


@dataclass(frozen=True)
class Level:
    """How much is asked of a server: callers of a closed loop, or 0 and the calls a second of an open one.

    Calls are the workload's lists, or lists of so many pairs.
    """

    concurrency: int
    rate: float = 0.0
    pairs: int | None = None


@dataclass
class _Running:
    served: ServedModel
    stack: ExitStack
    loads: dict[tuple[Setting, int | None], Load] = field(default_factory=dict)


class SettingServers:
    """Measures settings of a model in repositories, label -> folder; a context manager that stops all servers."""

    def __init__(
        self,
        repositories: Mapping[str, Path],
        model: str,
        lists: Sequence[Workload],
        *,
        seed: int,
        on_progress: Callable[[str], None],
    ) -> None:
        self.other_load = OtherLoad()
        self.triton_version: str | None = None
        self._repositories, self._model, self._lists, self._seed = repositories, model, lists, seed
        self._on_progress = on_progress
        self._kept: Setting | None = None
        self._running: dict[Setting, _Running] = {}

    def __enter__(self) -> SettingServers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with ExitStack() as all_of_them:
            for running in self._running.values():
                all_of_them.enter_context(running.stack)
            self._running = {}

    def keep(self, setting: Setting) -> None:
        """Let the server of this setting run beside others from now on."""
        self._kept = setting.served

    def measure(self, setting: Setting, level: Level, duration_s: float, warm_up_s: float) -> LoadFigures:
        """Load a setting, whose server is started if it does not run.

        Raises:
            ServerStartError: Triton does not start with it.
            RerankError: its first answer is an error.
            BenchError: the server ended.
        """
        load = self._load(setting, level.pairs)
        with self.other_load:
            if level.concurrency:
                return load.closed(level.concurrency, duration_s, warm_up_s)
            return load.open(level.rate, duration_s, warm_up_s)

    def diff(self, setting: Setting) -> str:
        """The change of a repository's configs that makes the setting of what was exported."""
        return config_diff(self._repositories[setting.repository], self._model, setting.change)

    def _load(self, setting: Setting, pairs: int | None) -> Load:
        running = self._running.get(setting.served) or self._start(setting.served)
        key = (setting, pairs)
        if key not in running.loads:
            lists = self._lists
            if pairs is not None:
                lists = [passages(self._seed + pairs + i, pairs) for i in range(N_LISTS_OF_A_SIZE)]
            load = Load(running.served, self._model, lists, seed=self._seed, options=setting.client_options)
            running.stack.callback(load.close)
            running.loads[key] = load
        return running.loads[key]

    def _start(self, setting: Setting) -> _Running:
        for other in [other for other in self._running if other != self._kept]:
            self._on_progress("stopping a server")
            self._running.pop(other).stack.close()
        folder = self._repositories[setting.repository]
        with ExitStack() as stack:
            copy = stack.enter_context(variant(folder, self._model, setting.change))
            served = stack.enter_context(serve(copy, self._model, on_progress=self._on_progress))
            self._running[setting] = _Running(served, stack.pop_all())
        self.triton_version = served.triton_version
        return self._running[setting]
