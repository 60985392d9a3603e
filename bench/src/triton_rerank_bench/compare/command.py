"""``triton-rerank-bench peers`` and ``speed``: ours beside other libraries, same weights and texts, in one run.

``peers`` compares with everybody that has an environment, ``speed`` with sentence-transformers as it is installed here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from triton_rerank.repository import Artefacts
from triton_rerank_bench import plots, workloads
from triton_rerank_bench.compare.catalogue import INSTALLED, PEERS, Peer
from triton_rerank_bench.compare.contestants import Contestant, InProcess, Served, n_threads
from triton_rerank_bench.compare.folders import ModelFolders
from triton_rerank_bench.compare.process import Workers
from triton_rerank_bench.compare.race import WARM_UP_ROUNDS, Outcome, Race, Row, reference_scores
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import PeakMemory, describe_machine, today, watching
from triton_rerank_bench.options import add_check, add_checkpoint, add_common, add_folder, add_model, positive
from triton_rerank_bench.progress import OnStep, showing_time_left
from triton_rerank_bench.report import Files, Json, Report, Table, check_folder, compact, nothing_measured, target, text
from triton_rerank_bench.served import read_model, serve
from triton_rerank_bench.workloads import Workload, token_statistics

DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 2
QUICK_SETTINGS = 2  # of each peer: the default and the likeliest other
DEFAULT_WORKLOADS = ("passages", "chunks")
MEMORY_CALLS = 5  # untimed calls of the first workload, watched closely
MIN_OVER = {"default": 2.5, "best": 1.2}  # seconds of the fastest peer at such a setting over ours served
MAX_OVERHEAD = 1.03  # served over in process, 100 pairs
MAX_SINGLE_MS = 1.5  # served minus in process, one pair
MIN_SPEEDUP = 2.0  # sentence-transformers fp32 over served int8
MAX_MEMORY_MB = 1000
ENVIRONMENTS, CACHE = Path(".venv-peers"), Path(".cache/peers")
REPORT, LINE, PLOT = "peers.md", "peers.json", "peers.png"

_PACKAGES = (
    "sentence-transformers", "transformers", "torch", "optimum", "optimum-onnx", "optimum-intel", "openvino", "nncf",
    "onnxruntime", "infinity-emb", "fastembed", "FlashRank", "tokenizers",
)  # fmt: skip
_COLUMNS = {
    "": "name", "at its": "kind", "setting": "setting", "s": "timing.median_s:.4f", "/ served": "over:.2f",
    "Kendall tau": "kendall_tau:.3f",
}  # fmt: skip
_NOTES = (
    "s: seconds for the whole list, tokenisation included, median of the rounds. / served: those seconds over ours "
    "served, paired within rounds: median (least to most). Kendall tau: order against torch fp32; below the bound of "
    "its precision a peer gets no ratio. A peer's texts and scores go through a pipe to a process of its own "
    "environment, which costs about a millisecond."
)


@dataclass
class Measured:
    """Everything that one run measured; it is filled while it runs. The memory is the server's."""

    files: Artefacts
    n_threads: int
    triton_version: str | None = None
    other_load: float = 0.0
    interrupted: bool = False
    workloads: list[Outcome] = field(default_factory=list)
    memory: PeakMemory = field(default_factory=PeakMemory)


def add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run_speed` reads."""
    add_model(parser)
    add_checkpoint(parser)
    parser.add_argument("--rounds", type=positive, default=7, help="counted rounds (default %(default)s)")
    add_check(parser)
    add_common(parser)
    parser.set_defaults(environments=ENVIRONMENTS, cache=CACHE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    add_model(parser)
    add_checkpoint(parser)
    add_environments(parser)
    parser.add_argument("--workload", action="append", choices=DEFAULT_WORKLOADS, help="repeatable (default both)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="peers of this name, or whose name begins so"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help=f"counted rounds (default {DEFAULT_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="passages, two settings a peer, two rounds")
    add_folder(parser)


def add_environments(parser: argparse.ArgumentParser) -> None:
    """Where the peers' environments and files are."""
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="default %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for the peers' files (default %(default)s)")


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Measure, print the tables and write the report; gives it as plain data, and 130 after an interruption, else 0.

    Raises:
        BenchError: an option is wrong, or ours cannot be measured; nothing is written then.
        ServerStartError, RerankError: Triton did not start, or the served model did not answer.
    """
    peers, quick = choose_peers(options.only), options.quick
    rounds = options.rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS)
    names = dict.fromkeys(options.workload or DEFAULT_WORKLOADS[: 1 if quick else None])
    texts = [workloads.BY_NAME[name](options.seed)[0] for name in names]
    check_folder(options.output_folder, (REPORT, LINE, PLOT))
    files = read_model(options.model_repository, options.model)
    with showing_time_left() as on_step:
        measured = compare(options, files, peers, texts, rounds, on_step, QUICK_SETTINGS if quick else None)
    if not measured.workloads:
        return nothing_measured("peers", console)
    settings: Json = {"seed": options.seed, "rounds": rounds, "quick": quick, "only": options.only}
    report = comparison_report("peers", measured, settings, judge(measured), _versions(options.environments, peers))
    return report.finish(options, console, peers_files(measured, report))


def peers_files(measured: Measured, report: Report) -> Files:
    """The Markdown, the JSON line and the plot."""
    info, machine = measured.files.info, describe_machine()
    title = f"{info.name} {info.precision}: seconds of each peer over ours, served"
    caption = (
        f"{machine.cpu}, {measured.n_threads} threads each; {today()}; bars: median, lines: least to most of rounds"
    )
    return {
        REPORT: report.markdown("Peers, side by side", f"![ratios]({PLOT})"),
        LINE: compact(report.json()) + "\n",
        PLOT: lambda path: plots.plot_peers(measured.workloads, path, title, caption),
    }


def run_speed(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Compare with sentence-transformers as it is installed here, and print.

    Returns:
        The report as plain data, and 130 after an interruption, 1 if ``--check`` is given and a target missed, or 0.

    Raises:
        BenchError: the repository or the checkpoint is not there, or the server ended.
        ServerStartError, RerankError: Triton did not start, or the served model did not answer.
    """
    files = read_model(options.model_repository, options.model)
    texts = [workloads.passages(options.seed), workloads.single(options.seed)]
    with showing_time_left() as on_step:
        measured = compare(options, files, [INSTALLED], texts, options.rounds, on_step, QUICK_SETTINGS)
    settings: Json = {"seed": options.seed, "rounds": options.rounds}
    return comparison_report("speed", measured, settings, judge_speed(measured)).finish(options, console)


def compare(
    options: argparse.Namespace,
    files: Artefacts,
    peers: Sequence[Peer],
    texts: Sequence[Workload],
    n_rounds: int,
    on_step: OnStep,
    n_settings: int | None = None,
) -> Measured:
    """Time ours and the peers; an interruption keeps the rounds that were complete.

    Raises:
        BenchError: there is no checkpoint, or the reference cannot be computed.
        ServerStartError, RerankError: Triton did not start, or the served model did not answer.
    """
    measured, most = Measured(files, n_threads(files)), files.info.max_length
    folders = ModelFolders(options.checkpoint, options.cache, options.environments, max_length=most, on_step=on_step)
    in_process = InProcess(files)
    with Workers(folders.locate, max_length=most, n_threads=measured.n_threads) as workers:
        references = reference_scores(INSTALLED, {}, texts, workers, on_step)
        race = Race(peers, workers, n_rounds, options.seed, on_step, n_settings=n_settings)
        with serve(options.model_repository, files.info.name, on_progress=on_step) as server:
            measured.triton_version, served = server.triton_version, Served(server.client)
            ours: list[Contestant] = [served, in_process]
            try:
                for each in texts:
                    tokens = token_statistics(each, in_process.token_counts(each.query, each.documents))
                    figures = race.run(ours, each, tokens, references[each.name])
                    measured.workloads += [figures] if figures else []
                    if race.interrupted:
                        break
                else:
                    with watching(server.pid, measured.memory):
                        for _ in range(MEMORY_CALLS):
                            served.scores(texts[0].query, texts[0].documents)
            except KeyboardInterrupt:  # while it searched: nothing of this workload counts
                race.interrupted = True
    measured.other_load, measured.interrupted = race.load.share(), race.interrupted
    return measured


def judge(measured: Measured) -> list[Json]:
    """Hold the figures of every workload against the targets of `peers`."""
    found = []
    for each in measured.workloads:
        for kind, bound in MIN_OVER.items():
            ratios = [row.ratio for row in each.of(kind) if row.ratio]
            if ratios:
                least = min(ratios, key=lambda ratio: ratio.median)
                what = f"{each.workload}: fastest peer at its {kind} ({least.numerator}) / served"
                found.append(target(what, least.median, at_least=bound))
    return found


def judge_speed(measured: Measured) -> list[Json]:
    """Hold figures against the targets of `speed`; what was not measured is not judged. The speed-up is int8's only."""
    found = []
    for each in measured.workloads:
        if each.tokens.pairs == 1:
            if each.added_ms is not None:
                found.append(target("served − in process, one pair, ms", each.added_ms, at_most=MAX_SINGLE_MS))
            continue
        if each.served_over_in_process:
            over = each.served_over_in_process.median
            found.append(target("served / in process, 100 pairs", over, at_most=MAX_OVERHEAD))
        for row in each.of("default"):
            if row.ratio:
                what, is_int8 = f"{row.name} / served, 100 pairs", measured.files.info.precision == "int8"
                found.append(target(what, row.ratio.median, at_least=MIN_SPEEDUP, judged=is_int8))
    if measured.memory.samples:
        found.append(target("peak server memory, MB", measured.memory.pss_bytes / 1e6, at_most=MAX_MEMORY_MB))
    return found


def comparison_report(
    kind: str,
    measured: Measured,
    settings: Json,
    judged: list[Json],
    environments: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Report:
    """Tables of each workload, remarks, targets, and what was tried; environments: name -> package -> version."""
    machine, info, engine = describe_machine(), measured.files.info, measured.files.engine
    parts: list[str | Table] = [
        f"{info.name} {info.precision} ({engine}), max_length {info.max_length}, Triton {measured.triton_version}; "
        f"{machine.cpu} ({', '.join(machine.cpu_flags)}), {measured.n_threads} threads each"
    ]
    for each in measured.workloads:
        parts += [workload_table(each), *_remarks(each)]
    parts += [*_memory(measured.memory), _NOTES]
    for name, versions in environments.items():
        parts.append(f"{name}: {', '.join(' '.join(each) for each in versions.items())}")
    figures: Json = {
        "environments": environments,
        "model": info.name,
        "precision": info.precision,
        "backend": engine,
        "max_length": info.max_length,
        "n_threads": measured.n_threads,
        "workloads": measured.workloads,
        "server_memory": measured.memory,
    }
    about = {"other_load": measured.other_load, "interrupted": measured.interrupted}
    return Report(kind, measured.triton_version, settings, figures, parts, targets=judged, **about)  # type: ignore[arg-type]


def workload_table(figures: Outcome) -> Table:
    """Ours, then the peers, fastest at its best first; then those without a ratio."""
    tokens, best = figures.tokens, {row.name: row for row in figures.of("best")}

    def rank(row: Row) -> tuple[int, float]:
        """Both rows of a peer have the place of its best."""
        of = best.get(row.name)
        return (0, 0.0) if of is None else (1 if of.ratio else 2, of.timing.median_s)

    title = (
        f"{figures.workload}: {tokens.pairs} pairs, {tokens.total:,} tokens (longest {tokens.longest}, "
        f"{tokens.tokens_per_word:.2f} a word); {figures.n_rounds} rounds after {WARM_UP_ROUNDS} uncounted"
    )
    rows = [{**vars(row), "over": row.ratio or "other order"} for row in sorted(figures.rows, key=rank)]
    return Table(title, _COLUMNS, rows)


def choose_peers(beginnings: Sequence[str]) -> list[Peer]:
    """Peers of these names or, where a text is none, those it begins; all without. Raises BenchError for others."""
    names = {peer.name.lower(): peer for peer in PEERS}
    chosen: list[Peer] = []
    for beginning in beginnings:
        begun = [peer for name, peer in names.items() if name.startswith(beginning.lower())]
        if not begun:
            told = ", ".join(peer.name for peer in PEERS)
            raise BenchError(f"--only {beginning}: no peer's name begins so; there are {told}")
        chosen += [names[beginning.lower()]] if beginning.lower() in names else begun
    return [peer for peer in PEERS if peer in chosen or not beginnings]


def _versions(environments: Path, peers: Sequence[Peer]) -> dict[str, dict[str, str]]:
    """Versions of the packages that matter, environment by environment."""
    versions = {}
    for name in dict.fromkeys(peer.environment for peer in peers if (environments / peer.environment).is_dir()):
        folders = [str(path) for path in (environments / name).glob("lib/python*/site-packages")]
        found = {each.metadata["Name"].lower(): each.version for each in metadata.distributions(path=folders)}
        versions[name] = {package: found[package.lower()] for package in _PACKAGES if package.lower() in found}
    return versions


def _remarks(figures: Outcome) -> list[str]:
    lines = [f"{peer}: not measured: {why}" for peer, why in figures.not_measured.items()]
    for peer, tried in figures.tried.items():
        told = "; ".join(f"{setting} {seconds:.3f}" for setting, seconds in tried.items())
        lines.append(f"{peer}: seconds in the search for its best setting, before the rounds: {told}")
    for row in figures.of("default"):
        lines += [f"{row.name}: {name} {value}" for name, value in row.notes.items()]
        if not row.ratio:
            lines.append(
                f"{row.name}: gets no ratio: Kendall's tau to torch fp32 is {row.kendall_tau:.3f}, and "
                f"{row.precision} must reach {row.least_tau:g}"
            )
    ours = ""
    if figures.served_over_in_process:
        ours = f" Served over in process: {text(figures.served_over_in_process, '.3f')}, {figures.added_ms:+.2f} ms."
    return [*lines, f"All waiting workers together used {figures.idle_share:.1%} of one core.{ours}"]


def _memory(peak: PeakMemory) -> list[str]:
    if not peak.samples:
        return []
    parts = ", ".join(f"{process.name} {process.pss_bytes / 1e6:.0f}" for process in peak.processes)
    return [
        f"Peak server memory: {peak.pss_bytes / 1e6:.0f} MB = {parts}; sum of PSS (shared pages counted once) of "
        f"tritonserver and its children, largest of {peak.samples} samples"
    ]
