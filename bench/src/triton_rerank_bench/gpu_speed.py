"""Measures one model on one device: finds its setting, then times it beside sentence-transformers in the same run."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from triton_rerank import RerankError
from triton_rerank_bench import gpu_device, gpu_peer, workloads
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gpu_figures import CAPACITY_WORKLOAD, Memory, ModelFigures, TriedSetting, judge
from triton_rerank_bench.gpu_models import Prepared
from triton_rerank_bench.gpu_settings import Setting, changes
from triton_rerank_bench.gpu_workload import WARM_UP_SHARE, Plan, Progress, SideBySide
from triton_rerank_bench.load import Load
from triton_rerank_bench.repository import read_model
from triton_rerank_bench.served import ServedModel, serve
from triton_rerank_bench.variants import config_diff, variant
from triton_rerank_server import ServerStartError

MEMORY_CALLS = 3  # untimed calls of each workload before memory is read


def measure_model(model: Prepared, precision: str, plan: Plan, *, on_step: Progress) -> ModelFigures:
    """Find the fastest setting, serve it, and measure it beside the peer.

    Args:
        model: what is measured.
        precision: of its export.
        plan: what of it.
        on_step: told what is being done.

    Raises:
        BenchError: a figure cannot be had.
        ServerStartError: the first setting did not start.
        RerankError: the served model did not answer.
    """
    files = read_model(model.repository, model.shape)
    chosen, tried = choose_setting(model, plan, on_step=on_step)
    before = gpu_device.memory_used_mib(plan.device.kind, plan.device_id)
    with (
        variant(model.repository, model.shape, chosen.change) as repository,
        serve(repository, model.shape, on_progress=on_step) as server,
    ):
        server_mib = _server_memory(server, plan, before)
        with contextlib.closing(SideBySide(model, files, server, plan, on_step=on_step)) as sides:
            figures = [sides.measure(name) for name in plan.workloads]
            peer_mib = gpu_peer.reserved_mib(plan.device.kind, plan.device_id)
        version = server.triton_version
    return ModelFigures(
        shape=model.shape,
        weights=model.weights,
        precision=precision,
        max_length=files.info.max_length,
        triton_version=version,
        setting=str(chosen),
        config_change=config_diff(model.repository, model.shape, chosen.change),
        tried=tried,
        workloads=figures,
        memory=Memory(server_mib, peer_mib),
        other_load=sides.other_load(),
        targets=judge(model.shape, plan.device, figures),
    )


def choose_setting(model: Prepared, plan: Plan, *, on_step: Progress) -> tuple[Setting, list[TriedSetting]]:
    """Try one change after the other on top of the best so far, and keep what answers more pairs a second.

    Args:
        model: what is served.
        plan: load of each trial: passages, at the most callers.
        on_step: told what is tried.

    Returns:
        The fastest setting, and all that were tried.

    Raises:
        BenchError: the first setting did not answer.
        ServerStartError: it did not start.
    """
    best = Setting(plan.device.kind)
    rate = _try(model, best, plan, on_step)
    tried = [TriedSetting(str(best), rate)]
    for change in changes(plan.device.kind):
        setting = replace(best, **change)
        try:
            found = _try(model, setting, plan, on_step)
        except (ServerStartError, RerankError, BenchError) as exc:
            tried.append(TriedSetting(str(setting), None, str(exc)))
            continue
        tried.append(TriedSetting(str(setting), found))
        if found > rate:
            best, rate = setting, found
    return best, tried


def _try(model: Prepared, setting: Setting, plan: Plan, on_step: Progress) -> float:
    on_step(f"{model.shape}: {setting}")
    lists = workloads.BY_NAME[CAPACITY_WORKLOAD](plan.seed)
    with (
        variant(model.repository, model.shape, setting.change) as repository,
        serve(repository, model.shape, on_progress=lambda _: None) as server,
        contextlib.closing(Load(server, model.shape, lists, seed=plan.seed)) as load,
    ):
        found = load.closed(max(plan.concurrencies), plan.level_s, WARM_UP_SHARE * plan.level_s)
    if found.errors:
        raise BenchError(f"calls failed: {found.errors}")
    return found.pairs_per_s


def _server_memory(server: ServedModel, plan: Plan, before: int | None) -> int | None:
    """What Triton took, before the peer is loaded; nothing is timed here."""
    for name in plan.workloads:
        for texts in workloads.BY_NAME[name](plan.seed)[:MEMORY_CALLS]:
            server.client.score(texts.query, texts.documents)
    after = gpu_device.memory_used_mib(plan.device.kind, plan.device_id)
    return after - before if after is not None and before is not None else None
