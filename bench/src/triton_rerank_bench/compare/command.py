"""``triton-rerank-bench peers`` and ``speed``: ours beside other libraries, same weights and texts, in one run.

``peers`` compares with everybody that has an environment, ``speed`` with sentence-transformers as it is installed here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rich.console import Console

from triton_rerank.repository import Artefacts
from triton_rerank_bench import plots, workloads
from triton_rerank_bench.compare.catalogue import HERE, INSTALLED, PEERS, Peer
from triton_rerank_bench.compare.contestants import Contestant, InProcess, Served, n_threads
from triton_rerank_bench.compare.folders import ModelFolders, check_checkpoint, python_of
from triton_rerank_bench.compare.process import Workers
from triton_rerank_bench.compare.race import AtSetting, PeerFigures, Race, WorkloadPeers, reference_scores
from triton_rerank_bench.compare.rounds import WARM_UP_ROUNDS
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.machine import describe_machine, today
from triton_rerank_bench.memory import PeakMemory, watching
from triton_rerank_bench.options import add_checkpoint, add_common, add_folder, add_model, positive
from triton_rerank_bench.progress import OnStep, showing_time_left
from triton_rerank_bench.report import (
    LOUD,
    Json,
    Report,
    Table,
    check_folder,
    compact,
    missed,
    others,
    publish,
    target,
    targets,
    text,
)
from triton_rerank_bench.served import read_model, serve
from triton_rerank_bench.workloads import Workload, token_statistics

DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 2
QUICK_SETTINGS = 2  # of each peer: the default and the likeliest other
DEFAULT_WORKLOADS = ("passages", "chunks")
MEMORY_CALLS = 5  # untimed calls of the first workload, watched closely
MIN_OVER_DEFAULT = 2.5  # seconds of the fastest peer at its default over ours served
MIN_OVER_BEST = 1.2  # of any peer at its best
MAX_OVERHEAD = 1.03  # served over in process, 100 pairs
MAX_SINGLE_MS = 1.5  # served minus in process, one pair
MIN_SPEEDUP = 2.0  # sentence-transformers fp32 over served int8
MAX_MEMORY_MB = 1000
REPORT, LINE, PLOT = "peers.md", "peers.json", "peers.png"
FILES = (REPORT, LINE, PLOT)

_PACKAGES = (
    "sentence-transformers", "transformers", "torch", "optimum", "optimum-onnx", "optimum-intel", "openvino", "nncf",
    "onnxruntime", "infinity-emb", "fastembed", "FlashRank", "tokenizers",
)  # fmt: skip
_COLUMNS = {
    "peer": "peer", "default": "default", "s": "default_s:.4f", "/ served": "default_ratio:.2f",
    "best setting": "best", "best s": "best_s:.4f", "best / served": "best_ratio:.2f", "Kendall tau": "tau:.3f",
}  # fmt: skip
_NOTES = (
    "s: seconds for the whole list, tokenisation included, median of the rounds. / served: those seconds over ours "
    "served, paired within rounds: median (least to most). Kendall tau: order of the default setting against torch "
    "fp32; below the bound of its precision a peer gets no ratio. A peer's texts and scores go through a pipe to a "
    "process of its own environment, which costs about a millisecond."
)


@dataclass
class Measured:
    """Everything that one run measured; it is filled while it runs. The memory is the server's."""

    files: Artefacts
    n_threads: int
    triton_version: str | None = None
    other_load: float = 0.0
    interrupted: bool = False
    workloads: list[WorkloadPeers] = field(default_factory=list)
    memory: PeakMemory = field(default_factory=PeakMemory)


def add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run_speed` reads."""
    add_model(parser)
    add_checkpoint(parser)
    parser.add_argument("--rounds", type=positive, default=7, help="counted rounds (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    add_common(parser)


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
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="default %(default)s")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/peers"), help="for the peers' files (default %(default)s)"
    )


def run(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Measure, print the tables and write the report.

    Returns:
        The report as plain data, and 0, or 130 if the user interrupted it.

    Raises:
        BenchError: an option is wrong, or ours cannot be measured; nothing is written then.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    peers, quick = choose_peers(options.only), options.quick
    n_rounds = options.rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS)
    names = dict.fromkeys(options.workload or DEFAULT_WORKLOADS[: 1 if quick else None])
    texts = [workloads.BY_NAME[name](options.seed)[0] for name in names]
    check_folder(options.output_folder, FILES)
    files = read_model(options.model_repository, options.model)
    checkpoint, environments = check_checkpoint(options.checkpoint), options.environments
    with showing_time_left() as on_step:
        folders = ModelFolders(
            checkpoint, options.cache, environments, max_length=files.info.max_length, on_step=on_step
        )

        def locate(peer: Peer) -> tuple[Path, Path]:
            """Interpreter and model folder."""
            if peer.environment == HERE:
                return Path(sys.executable), checkpoint
            return python_of(environments, peer.environment), folders.get(peer.files)

        measured = compare(options, files, peers, texts, locate, n_rounds, on_step, QUICK_SETTINGS if quick else None)
    if not measured.workloads:
        console.print("interrupted before anything was measured: nothing is written")
        return {"kind": "peers", "interrupted": True}, INTERRUPTED
    settings: Json = {"seed": options.seed, "rounds": n_rounds, "quick": quick, "only": options.only}
    versions = _versions(environments, peers)
    report = comparison_report("peers", measured, settings, judge(measured.workloads), versions)
    written = write_peers(options.output_folder, measured, report)
    report.print(console)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)
    return report.json(), INTERRUPTED if measured.interrupted else 0


def run_speed(options: argparse.Namespace, console: Console) -> tuple[Json, int]:
    """Compare with sentence-transformers as it is installed here, and print.

    Returns:
        The report as plain data, and 130 if the user interrupted it, 1 if ``--check`` is given and a target was missed.

    Raises:
        BenchError: the repository or the checkpoint is not there, or the server ended.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    files, checkpoint = read_model(options.model_repository, options.model), check_checkpoint(options.checkpoint)
    texts = [workloads.passages(options.seed), workloads.single(options.seed)]
    with showing_time_left() as on_step:
        locate = lambda _: (Path(sys.executable), checkpoint)  # noqa: E731
        measured = compare(options, files, [INSTALLED], texts, locate, options.rounds, on_step, QUICK_SETTINGS)
    judged = judge_speed(measured)
    report = comparison_report("speed", measured, {"seed": options.seed, "rounds": options.rounds}, judged, {})
    report.print(console)
    return report.json(), INTERRUPTED if measured.interrupted else int(options.check and missed(judged))


def compare(
    options: argparse.Namespace,
    files: Artefacts,
    peers: Sequence[Peer],
    texts: Sequence[Workload],
    locate: Callable[[Peer], tuple[Path, Path]],
    n_rounds: int,
    on_step: OnStep,
    n_settings: int | None = None,
) -> Measured:
    """Time ours and the peers; an interruption keeps the rounds that were complete.

    Raises:
        BenchError: the reference cannot be computed.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    measured, in_process = Measured(files, n_threads(files)), InProcess(files)
    with Workers(locate, max_length=files.info.max_length, n_threads=measured.n_threads) as workers:
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


def judge(figures: Sequence[WorkloadPeers]) -> list[Json]:
    """Hold the figures of every workload against the targets of `peers`."""
    found = []
    for each in figures:
        for kind, bound in (("default", MIN_OVER_DEFAULT), ("best", MIN_OVER_BEST)):
            ratios = [at.ratio for peer in each.peers if (at := getattr(peer, kind)) and at.ratio]
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
        if (default := each.peers[0].default) and default.ratio:
            what, is_int8 = f"{each.peers[0].peer} / served, 100 pairs", measured.files.info.precision == "int8"
            found.append(target(what, default.ratio.median, at_least=MIN_SPEEDUP, judged=is_int8))
    if measured.memory.samples:
        found.append(target("peak server memory, MB", measured.memory.pss_bytes / 1e6, at_most=MAX_MEMORY_MB))
    return found


def comparison_report(
    kind: str, measured: Measured, settings: Json, judged: list[Json], environments: dict[str, dict[str, str]]
) -> Report:
    """Tables of each workload, remarks, targets, and what was tried."""
    machine, info, engine = describe_machine(), measured.files.info, measured.files.engine
    version = measured.triton_version
    parts: list[str | Table] = [
        f"{info.name} {info.precision} ({engine}), max_length {info.max_length}, Triton {version}; {machine.cpu} "
        f"({', '.join(machine.cpu_flags)}), {measured.n_threads} threads each",
        others(measured.other_load),
        *([f"{LOUD}Interrupted: what follows was measured before."] if measured.interrupted else []),
    ]
    for figures in measured.workloads:
        parts += [workload_table(figures), *_remarks(figures)]
    parts += [*_memory(measured.memory), targets(judged), _NOTES]
    for figures in measured.workloads:
        rows = [{"peer": peer.peer, "tried": _tried(peer)} for peer in figures.peers if peer.tried]
        title = f"{figures.workload}: seconds in the search for the best setting, before the rounds"
        parts.append(Table(title, {"peer": "peer", "setting: seconds": "tried"}, rows))
    parts += [f"{name}: {', '.join(' '.join(each) for each in found.items())}" for name, found in environments.items()]
    figures_: Json = {
        "environments": environments,
        "model": info.name,
        "precision": info.precision,
        "backend": engine,
        "max_length": info.max_length,
        "n_threads": measured.n_threads,
        "triton_version": version,
        "other_load": measured.other_load,
        "interrupted": measured.interrupted,
        "workloads": measured.workloads,
        "server_memory": measured.memory,
        "targets": judged,
    }
    return Report(kind, version, settings, figures_, parts)


def workload_table(figures: WorkloadPeers) -> Table:
    """Ours, then the peers, fastest at its best first; then those without a ratio, then those not measured."""
    tokens = figures.tokens
    title = (
        f"{figures.workload}: {tokens.pairs} pairs, {tokens.total:,} tokens (longest {tokens.longest}, "
        f"{tokens.tokens_per_word:.2f} a word); {figures.n_rounds} rounds after {WARM_UP_ROUNDS} uncounted"
    )
    over = figures.served_over_in_process
    ours = [
        {"peer": f"ours, {timing.contestant}", "default_s": timing.median_s, "default_ratio": ratio, "tau": tau}
        for timing, ratio, tau in zip(
            figures.ours, (1.0, over and 1 / over.median), (figures.our_kendall_tau, None), strict=False
        )
    ]
    return Table(title, _COLUMNS, [*ours, *(_row(peer) for peer in sorted(figures.peers, key=_ranking))])


def write_peers(folder: Path, measured: Measured, report: Report) -> list[Path]:
    """Write the Markdown, the JSON line and the plot."""
    info, machine = measured.files.info, describe_machine()
    caption = (
        f"{machine.cpu}, {measured.n_threads} threads each; {today()}; bars: median, lines: least to most of rounds"
    )
    title = f"{info.name} {info.precision}: seconds of each peer over ours, served"
    return publish(
        folder,
        {
            REPORT: report.markdown("Peers, side by side", f"![ratios]({PLOT})"),
            LINE: compact(report.json()) + "\n",
            PLOT: lambda path: plots.plot_peers(measured.workloads, path, title=title, caption=caption),
        },
    )


def choose_peers(beginnings: list[str]) -> list[Peer]:
    """Peers whose name is one of the texts or, where no name is, begins with it, in any case; all if none is given.

    Raises:
        BenchError: a text begins no peer's name.
    """
    for beginning in beginnings:
        if not any(_begins(peer, beginning) for peer in PEERS):
            names = ", ".join(peer.name for peer in PEERS)
            raise BenchError(f"--only {beginning}: no peer's name begins so; there are {names}")
    return [peer for peer in PEERS if not beginnings or any(_begins(peer, beginning) for beginning in beginnings)]


def _begins(peer: Peer, beginning: str) -> bool:
    name, wanted = peer.name.lower(), beginning.lower()
    whole = any(wanted == each.name.lower() for each in PEERS)
    return name == wanted if whole else name.startswith(wanted)


def _versions(environments: Path, peers: Sequence[Peer]) -> dict[str, dict[str, str]]:
    """Versions of the packages that matter, environment by environment."""
    names = dict.fromkeys(peer.environment for peer in peers)
    return {name: _installed(environments / name) for name in names if (environments / name).is_dir()}


def _installed(environment: Path) -> dict[str, str]:
    folders = [str(path) for path in environment.glob("lib/python*/site-packages")]
    found = {each.metadata["Name"].lower(): each.version for each in metadata.distributions(path=folders)}
    return {name: found[name.lower()] for name in _PACKAGES if name.lower() in found}


def _ranking(peer: PeerFigures) -> tuple[int, float]:
    if peer.best is None:
        return 2, 0.0
    return (0, peer.best.timing.median_s) if peer.best.ratio else (1, peer.best.timing.median_s)


def _row(peer: PeerFigures) -> Json:
    if peer.default is None or peer.best is None:
        return {"peer": peer.peer, "default": "not measured"}
    notes = f" ({', '.join(f'{key} {value}' for key, value in peer.notes.items())})" if peer.notes else ""
    cells = {**_cells("default", peer.default), **_cells("best", peer.best)}
    return {"peer": peer.peer + notes, **cells, "tau": peer.default.kendall_tau}


def _cells(kind: str, at: AtSetting) -> Json:
    ratio = at.ratio or "other order"
    return {kind: at.setting, f"{kind}_s": at.timing.median_s, f"{kind}_ratio": ratio}


def _remarks(figures: WorkloadPeers) -> list[str]:
    lines = [f"{peer.peer}: not measured: {peer.not_measured}" for peer in figures.peers if peer.not_measured]
    lines += [
        f"{peer.peer}: gets no ratio: Kendall's tau to torch fp32 is {peer.default.kendall_tau:.3f}, and "
        f"{peer.precision} must reach {peer.least_tau:g}"
        for peer in figures.peers
        if peer.default and not peer.default.ratio
    ]
    ours = ""
    if figures.served_over_in_process:
        ours = f" Served over in process: {text(figures.served_over_in_process, '.3f')}, {figures.added_ms:+.2f} ms."
    return [*lines, f"All waiting workers together used {figures.idle_share:.1%} of one core.{ours}"]


def _tried(peer: PeerFigures) -> str:
    return "; ".join(f"{setting}: {seconds:.3f}" for setting, seconds in peer.tried.items())


def _memory(peak: PeakMemory) -> list[str]:
    if not peak.samples:
        return []
    parts = ", ".join(f"{process.name} {process.pss_bytes / 1e6:.0f}" for process in peak.processes)
    return [
        f"Peak server memory: {peak.pss_bytes / 1e6:.0f} MB = {parts}; sum of PSS (shared pages counted once) of "
        f"tritonserver and its children, largest of {peak.samples} samples"
    ]
