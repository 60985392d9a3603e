"""What a tuning run comes to, in sentences: which setting, what to change for it, how many machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triton_rerank_bench.tune.choice import HEADROOM, machines
from triton_rerank_bench.tune.findings import Answer, OpenLoop, Tuning
from triton_rerank_bench.tune.knobs import GRAPH_SHAPES, MICRO_BATCH_TOKENS, THREADS, UNBOUNDED, Setting

_EXPORT_FLAGS = {"max_batch_size": "--max-batch-size", "queue_delay_us": "--queue-delay-us"}
_BY_HAND = {
    "instances": "instance_group.count",
    "threads": f"parameters {' or '.join(THREADS.values())}",
    "length_ladder": "parameters length_ladder",
    "tokenizers": "instance_group.count of the tokenizer",
    "micro_batch_tokens": f"parameters {MICRO_BATCH_TOKENS}",
    "graph_tokens": f"parameters {GRAPH_SHAPES}",
}


@dataclass(frozen=True)
class Exported:
    """How a repository was exported, and where it is."""

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
    """The commands that serve the answer: what changes, exported anew, by hand, in the client."""
    answer = tuning.answer()
    if answer is None:
        return []
    setting = answer.setting
    how, changes = exported[setting.repository], setting.changes_from(answer.exported)
    lines = [f"{name}: {value_text(old)} -> {value_text(new)}" for name, (old, new) in changes.items()]
    flags = _export_flags(setting, changes)
    command = f"make export MODEL={model} PRECISION={how.precision} ENGINE={how.engine}"
    again = "(MODEL as it was exported first)"
    if flags:
        lines.append(f"exported anew: {command} REPLACE=1 ARGS='{' '.join(flags)}' {again}")
    elif len(exported) > 1:
        lines.append(
            f"serve {setting.repository}: make serve REPOSITORY={how.folder}, or, into the repository that you serve: "
            f"{command} {again}"
        )
    elif not changes:
        lines.append(f"Nothing to change: make serve REPOSITORY={how.folder} serves this setting.")
    by_hand = [_BY_HAND[name] for name in changes if name in _BY_HAND]
    if by_hand:
        lines.append(f"by hand, after each export, as in the diff of config.pbtxt: {', '.join(by_hand)}")
    if "split" in changes or "sub_requests" in changes:
        lines.append(f"in the client: RerankClient(…, options=TritonOptions({_client_arguments(setting)}))")
    return lines


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
    errors = f", {sum(figures.errors.values())} of them failed" if figures.errors else ""
    verdict = "" if bound is None else ", within the bound" if loop.holds else ", beyond the bound"
    return (
        f"At {loop.share:.0%} of the capacity, calls at random times ({figures.rate or 0:,.2f} a second, "
        f"{figures.calls} calls{errors}): p50 {ms_text(figures.latency.p50_ms)} ms, "
        f"p99 {ms_text(figures.latency.p99_ms)} ms{verdict}"
    )


def _export_flags(setting: Setting, changes: Mapping[str, object]) -> list[str]:
    flags = [f"{_EXPORT_FLAGS[name]} {getattr(setting, name)}" for name in changes if name in _EXPORT_FLAGS]
    if "queue_bounds" in changes and setting.queue_bounds == UNBOUNDED:
        flags.append("--max-queue-size 0 --queue-timeout-us 0")
    return flags


def _client_arguments(setting: Setting) -> str:
    arguments = [f'split="{setting.split}"'] if setting.split != "auto" else []
    if setting.sub_requests is not None:
        arguments.append(f"concurrency={setting.sub_requests}")
    return ", ".join(arguments)
