"""What a tuning run comes to, in sentences: which setting, what to change for it, how many machines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from triton_rerank_bench.tune.choice import HEADROOM, machines
from triton_rerank_bench.tune.findings import Answer, OpenLoop, Tuning
from triton_rerank_bench.tune.knobs import UNBOUNDED, Setting

_SET_AS_THEY_ARE = (
    "instances",
    "threads",
    "tokenizers",
    "micro_batch_tokens",
    "max_batch_size",
    "queue_delay_us",
    "scheduling",
)


@dataclass(frozen=True)
class Exported:
    """How a repository was exported, and where it is. Of several, the first is the one that the user serves."""

    precision: str
    engine: str
    folder: str


def answer_lines(tuning: Tuning) -> list[str]:
    """Which setting to take, and what it does."""
    answer = tuning.answer()
    if answer is None:
        return ["Nothing was measured."]
    return [_verdict(answer, tuning), *_compared(answer, tuning), *_unbounded(answer)]


def machine_lines(tuning: Tuning) -> list[str]:
    """How many machines the rate needs, and what the latency is when calls come at random times."""
    answer = tuning.answer()
    if answer is None:
        return []
    lines = [_machines(tuning.wanted.rate, answer, tuning)] if tuning.wanted.rate is not None else []
    lines += [_open_loop(loop, tuning) for loop in tuning.open_loops]
    if tuning.open_loops and _held(tuning) is None and answer.holds:
        lines.append("No share of the capacity that was tried held the bound with calls at random times.")
    return lines


def change_lines(tuning: Tuning, model: str, exported: Mapping[str, Exported]) -> list[str]:
    """What changes, and the commands that serve the answer: of the repository, and of the client."""
    answer = tuning.answer()
    if answer is None:
        return []
    changes, served = answer.setting.changes_from(answer.exported), next(iter(exported.values()))
    lines = [f"{name}: {value_text(old)} -> {value_text(new)}" for name, (old, new) in changes.items()]
    options = set_options(answer, exported)
    if options:
        where = f"MODEL={model} REPOSITORY={served.folder}"
        lines.append(f"in the repository, as a new version: make set {where} ARGS={shlex.quote(shlex.join(options))}")
        lines.append(f"then, where a server runs: make activate {where} TARGET=host:port")
    elif not changes:
        lines.append(f"Nothing to change: {served.folder}, which you serve, has this setting.")
    if "split" in changes or "sub_requests" in changes:
        lines.append(f"in the client: RerankClient(…, options=TritonOptions({_client_arguments(answer.setting)}))")
    return lines


def set_options(answer: Answer, exported: Mapping[str, Exported]) -> list[str]:
    """Options of ``triton-rerank-export set`` that make the first repository serve the answer; none where it does."""
    setting, changes = answer.setting, answer.setting.changes_from(answer.exported)
    values = {name: str(getattr(setting, name)) for name in _SET_AS_THEY_ARE if name in changes}
    if "length_ladder" in changes:
        values["length_ladder"] = value_text(setting.length_ladder)
    if setting.graph_tokens and changes.keys() & {"graph_tokens", "length_ladder", "max_batch_size"}:
        values["cuda_graph_shapes"] = setting.graph_shapes
    elif "graph_tokens" in changes:
        values["cuda_graph_shapes"] = ""
    if "queue_bounds" in changes and setting.queue_bounds == UNBOUNDED:
        values |= {"max_queue_size": "0", "queue_timeout_us": "0"}
    other = [] if setting.repository == next(iter(exported)) else ["--from", exported[setting.repository].folder]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return [*other, *options, *(["--replace"] if other else [])]


def doubt(tuning: Tuning, answer: Answer) -> str | None:
    """Why the answer should not be taken without a look; None if nothing speaks against it."""
    if tuning.interrupted:
        return "the run was interrupted"
    if not answer.holds:
        return "no setting holds what was asked for"
    if answer.setting != answer.exported and answer.confirmed is None:
        return "it was not confirmed beside the exported setting"
    return None


def setting_text(setting: Setting, exported: Setting) -> str:
    """A setting by what differs from the exported one."""
    changes = setting.changes_from(exported)
    told = ", ".join(f"{name} {value_text(old)} -> {value_text(new)}" for name, (old, new) in changes.items())
    return f"{setting.repository} with {told}" if told else f"{setting.repository} as exported"


def value_text(value: object) -> str:
    """A knob's value."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else "default" if value is None else str(value)


def ms_text(value: float) -> str:
    """Milliseconds, to three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def callers_text(count: int) -> str:
    """1 caller, 2 callers."""
    return f"{count} caller{'s' if count > 1 else ''}"


def _verdict(answer: Answer, tuning: Tuning) -> str:
    bound = tuning.wanted.p99_ms
    does = (
        f"{answer.pairs_per_s:,.1f} pairs/s ({answer.tokens_per_s:,.0f} tokens/s) from "
        f"{callers_text(answer.concurrency)}, p50 {ms_text(answer.p50_ms)} ms, p99 {ms_text(answer.p99_ms)} ms"
    )
    over = (
        f" (medians of {answer.rounds} rounds, worst p99 {ms_text(answer.worst_p99_ms)} ms)"
        if answer.rounds > 1
        else ""
    )
    told = f"{setting_text(answer.setting, answer.exported)}: {does}{over}."
    if not answer.holds and bound is not None:
        return f"No setting that was tried holds a p99 of {bound:,g} ms without errors. The closest is {told}"
    if not answer.holds:
        return f"Calls failed in every setting that was tried. The closest is {told}"
    within = f" that holds a p99 of {bound:,g} ms" if bound is not None else ", with no bound of p99"
    return f"Fastest setting{within}: {told}"


def _compared(answer: Answer, tuning: Tuning) -> list[str]:
    if not tuning.trials:
        return ["No other setting was tried: there was no time, or no knob was left to try."]
    noise = f"Noise, from {len(tuning.repeats)} measurements of the exported setting: {tuning.noise:.1%}."
    compared = tuning.confirmation
    if compared is None or compared.confirmed is None:
        if answer.setting != answer.exported:
            return [f"It was not held against the exported setting once more: take it as a guess. {noise}"]
        return [f"No other setting ({len(tuning.trials)} were tried) was better by more than the noise. {noise}"]
    ratios = f"{min(compared.ratios):.3f} to {max(compared.ratios):.3f} × the exported setting's pairs/s"
    if compared.confirmed:
        return [f"Confirmed in {len(compared.ratios)} rounds beside the exported setting: {ratios}. {noise}"]
    other = setting_text(compared.setting, tuning.exported)
    return [f"The search preferred {other}, but beside the exported setting it was not better: {ratios}. {noise}"]


def _unbounded(answer: Answer) -> list[str]:
    if answer.setting.queue_bounds == UNBOUNDED != answer.exported.queue_bounds:
        return ["Without queue bounds an overload is not refused: requests wait until their callers give up."]
    return []


def _held(tuning: Tuning) -> OpenLoop | None:
    """The largest share of the capacity at which calls at random times stay within the bound."""
    return next((loop for loop in tuning.open_loops if loop.holds), None)


def _machines(rate: float, answer: Answer, tuning: Tuning) -> str:
    if not answer.holds:
        return f"Machines for {rate:,g} pairs/s: no number of them helps while one call alone misses the bound."
    tried, held = tuning.open_loops, _held(tuning)
    share = (held or tried[-1]).share if tried else HEADROOM
    more, missed = ("more than ", ", where the bound is still missed") if tried and held is None else ("", "")
    return (
        f"Machines needed for {rate:,g} pairs/s: {more}{machines(rate, answer.pairs_per_s, share)} = {rate:,g} / "
        f"({answer.pairs_per_s:,.1f} pairs/s of one × {share:g} headroom), rounded up{missed}"
    )


def _open_loop(loop: OpenLoop, tuning: Tuning) -> str:
    figures, bound = loop.figures, tuning.wanted.p99_ms
    errors = f", {figures.failed} of them failed" if figures.errors else ""
    verdict = "" if bound is None else ", within the bound" if loop.holds else ", beyond the bound"
    return (
        f"At {loop.share:.0%} of the capacity, calls at random times ({figures.rate or 0:,.2f} a second, "
        f"{figures.calls} calls{errors}): p50 {ms_text(figures.latency.p50_ms)} ms, "
        f"p99 {ms_text(figures.latency.p99_ms)} ms{verdict}"
    )


def _client_arguments(setting: Setting) -> str:
    arguments = [f'split="{setting.split}"'] if setting.split != "auto" else []
    if setting.sub_requests is not None:
        arguments.append(f"concurrency={setting.sub_requests}")
    return ", ".join(arguments)
