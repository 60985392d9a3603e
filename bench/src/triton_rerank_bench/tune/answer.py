"""What a tuning run comes to, in sentences: which setting, what to change for it, how many machines; and the change."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.load.generator import LoadFigures
from triton_rerank_bench.tune.findings import HEADROOM, Answer, Tuning, holds, machines
from triton_rerank_bench.tune.knobs import UNBOUNDED, Setting

_EXPORT = "triton_rerank_export"
_SET_AS_THEY_ARE = (
    "instances", "threads", "tokenizers", "micro_batch_tokens", "max_batch_size", "queue_delay_us", "scheduling",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """How a repository was exported, and where it is. Of several, the first is the one that the user serves."""

    precision: str
    engine: str
    folder: str


def answer_lines(tuning: Tuning, answer: Answer) -> list[str]:
    """Which setting to take, and what it does."""
    bound, ms = tuning.wanted.p99_ms, ms_text
    told = (
        f"{setting_text(answer.setting, answer.exported)}: {answer.pairs_per_s:,.1f} pairs/s "
        f"({answer.tokens_per_s:,.0f} tokens/s) from {callers_text(answer.concurrency)}, p50 {ms(answer.p50_ms)} ms, "
        f"p99 {ms(answer.p99_ms)} ms"
    )
    if answer.rounds > 1:
        told += f" (medians of {answer.rounds} rounds, worst p99 {ms(answer.worst_p99_ms)} ms)"
    if not answer.holds and bound is not None:
        verdict = f"No setting that was tried holds a p99 of {bound:,g} ms without errors. The closest is"
    elif not answer.holds:
        verdict = "Calls failed in every setting that was tried. The closest is"
    else:
        within = f" that holds a p99 of {bound:,g} ms" if bound is not None else ", with no bound of p99"
        verdict = f"Fastest setting{within}:"
    lines = [f"{verdict} {told}.", _compared(answer, tuning)]
    if answer.setting.queue_bounds == UNBOUNDED != answer.exported.queue_bounds:
        lines.append("Without queue bounds an overload is not refused: requests wait until their callers give up.")
    return lines


def _compared(answer: Answer, tuning: Tuning) -> str:
    """How sure it is."""
    tried = len({row.setting for row in tuning.rows if row.stage == "knobs"})
    if not tried or tuning.best is None or tuning.exported is None:
        return "No other setting was tried: there was no time, or no knob was left to try."
    noise = f"Noise, from {len(tuning.repeats)} measurements of the exported setting: {tuning.noise:.1%}."
    if tuning.confirmed is None:
        if answer.setting != answer.exported:
            return f"It was not held against the exported setting once more: take it as a guess. {noise}"
        return f"No other setting ({tried} were tried) was better by more than the noise. {noise}"
    ratios = f"{min(tuning.ratios):.3f} to {max(tuning.ratios):.3f} × the exported setting's pairs/s"
    if tuning.confirmed:
        return f"Confirmed in {len(tuning.ratios)} rounds beside the exported setting: {ratios}. {noise}"
    other = setting_text(tuning.best, tuning.exported)
    return f"The search preferred {other}, but beside the exported setting it was not better: {ratios}. {noise}"


def machine_lines(tuning: Tuning, answer: Answer) -> list[str]:
    """How many machines the rate needs, and what the latency is when calls come at random times."""
    rate, loops = tuning.wanted.rate, tuning.of("open loop")
    shares = [round((each.rate or 0) * tuning.pairs_per_call / answer.pairs_per_s, 2) for each in loops]
    held = next((share for share, each in zip(shares, loops, strict=True) if holds(each, tuning.wanted.p99_ms)), None)
    lines = []
    if rate is not None and not answer.holds:
        lines = [f"Machines for {rate:,g} pairs/s: no number of them helps while one call alone misses the bound."]
    elif rate is not None:
        share = held or (shares[-1] if shares else HEADROOM)
        more, missed = ("more than ", ", where the bound is still missed") if shares and held is None else ("", "")
        lines = [
            f"Machines needed for {rate:,g} pairs/s: {more}{machines(rate, answer.pairs_per_s, share)} = {rate:,g} / "
            f"({answer.pairs_per_s:,.1f} pairs/s of one × {share:g} headroom), rounded up{missed}"
        ]
    lines += [_open_loop(share, each, tuning.wanted.p99_ms) for share, each in zip(shares, loops, strict=True)]
    if loops and held is None and answer.holds:
        lines.append("No share of the capacity that was tried held the bound with calls at random times.")
    return lines


def _open_loop(share: float, figures: LoadFigures, bound: float | None) -> str:
    errors = f", {figures.failed} of them failed" if figures.errors else ""
    verdict = "" if bound is None else ", within the bound" if holds(figures, bound) else ", beyond the bound"
    return (
        f"At {share:.0%} of the capacity, calls at random times ({figures.rate or 0:,.2f} a second, "
        f"{figures.calls} calls{errors}): p50 {ms_text(figures.latency.p50_ms)} ms, "
        f"p99 {ms_text(figures.latency.p99_ms)} ms{verdict}"
    )


def change_lines(answer: Answer, model: str, exported: Mapping[str, Exported]) -> list[str]:
    """What changes, and the commands that serve the answer: of the repository, and of the client."""
    changes, served = answer.setting.changes_from(answer.exported), next(iter(exported.values()))
    lines = [f"{name}: {value_text(old)} -> {value_text(new)}" for name, (old, new) in changes.items()]
    options = set_options(answer, exported)
    if options:
        where = f"MODEL={model} REPOSITORY={served.folder}"
        lines.append(f"in the repository, as a new version: make set {where} ARGS={shlex.quote(shlex.join(options))}")
        lines.append(f"then, where a server runs: make activate {where} TARGET=host:port")
    elif not changes:
        lines.append(f"Nothing to change: {served.folder}, which you serve, has this setting.")
    if changes.keys() & {"split", "sub_requests"}:
        setting = answer.setting
        arguments = [f'split="{setting.split}"'] if setting.split != "auto" else []
        arguments += [] if setting.sub_requests is None else [f"concurrency={setting.sub_requests}"]
        lines.append(f"in the client: RerankClient(…, options=TritonOptions({', '.join(arguments)}))")
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


def check_available() -> None:
    """Find out before the measurement, not after it; raises BenchError where export is not installed."""
    if importlib.util.find_spec(_EXPORT) is None:
        raise BenchError("--apply: triton-rerank-export changes the repository, and is not installed; install it")


def apply(tuning: Tuning, answer: Answer, model: str, exported: Mapping[str, Exported]) -> list[str]:
    """Have the first repository, of label -> repository, serve the answer, unless something speaks against it.

    Returns:
        What was done, or why nothing was, for people.

    Raises:
        BenchError: export refused, or failed; the repository is as it was, or its message says what is active.
        KeyboardInterrupt: with what holds then.
    """
    options, folder = set_options(answer, exported), next(iter(exported.values())).folder
    for speaks_against, why in (
        (tuning.interrupted, "the run was interrupted"),
        (not answer.holds, "no setting holds what was asked for"),
        (
            answer.setting != answer.exported and not answer.confirmed,
            "it was not confirmed beside the exported setting",
        ),
    ):
        if speaks_against:
            return [f"Not applied: {why}."]
    if not options:
        return ["Nothing to apply."]
    command = [sys.executable, "-m", f"{_EXPORT}.cli", "set", "--model", model, "--model-repository", folder, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the report is written; `make list REPOSITORY={folder}` says what is active") from None
    if done.returncode:
        raise BenchError(f"the report is written, but its answer was not applied: {done.stderr.strip()}")
    return ["Applied:", *(f"  {line}" for line in done.stdout.splitlines())]


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
