"""``triton-rerank-bench peers``: ours beside other libraries, on the same weights and texts, in one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rich.console import Console

from triton_rerank.repository import Artefacts
from triton_rerank_bench import plots, workloads
from triton_rerank_bench.compare.catalogue import PEERS, Peer
from triton_rerank_bench.compare.contestants import (
    PEER_BATCH_SIZE,
    Contestant,
    InProcess,
    Served,
    load_cross_encoder,
    n_threads,
)
from triton_rerank_bench.compare.folders import ModelFolders, python_of
from triton_rerank_bench.compare.race import AtSetting, PeerFigures, Race, WorkloadPeers
from triton_rerank_bench.compare.rounds import WARM_UP_ROUNDS
from triton_rerank_bench.compare.workers import Workers
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.machine import OtherLoad, describe_machine, today
from triton_rerank_bench.options import DEFAULT_SEED, add_folder
from triton_rerank_bench.progress import OnStep, showing_time_left
from triton_rerank_bench.report import LOUD, Json, Report, ReportFolder, Table, compact, others, target, targets, text
from triton_rerank_bench.served import read_model, serve
from triton_rerank_bench.workloads import Workload, token_statistics

DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 2
DEFAULT_WORKLOADS = ("passages", "chunks")
MIN_OVER_DEFAULT = 2.5  # seconds of the fastest peer at its default over ours served
MIN_OVER_BEST = 1.2  # of any peer at its best
REPORT, LINE, PLOT = "peers.md", "peers.json", "peers.png"
FILES = (REPORT, LINE, PLOT)

_PACKAGES = (
    "sentence-transformers", "transformers", "torch", "optimum", "optimum-onnx", "optimum-intel", "openvino", "nncf",
    "onnxruntime", "infinity-emb", "fastembed", "FlashRank", "tokenizers",
)  # fmt: skip
_COLUMNS = {
    "peer": "peer", "default": "default", "s": "default_s:.3f", "/ served": "default_ratio:.2f",
    "best setting": "best", "best s": "best_s:.3f", "best / served": "best_ratio:.2f", "Kendall tau": "tau:.3f",
}  # fmt: skip
_NOTES = (
    "s: seconds for the whole list, tokenisation included, median of the rounds. / served: those seconds over ours "
    "served, paired within rounds: median (least to most). Kendall tau: order of the default setting against torch "
    "fp32; below the bound of its precision a peer gets no ratio. A peer's texts and scores go through a pipe to a "
    "process of its own environment, which costs about a millisecond."
)


@dataclass
class Measured:
    """Everything that one run measured; it is filled while it runs."""

    files: Artefacts
    n_threads: int
    triton_version: str | None = None
    other_load: float = 0.0
    interrupted: bool = False
    workloads: list[WorkloadPeers] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    parser.add_argument("--model-repository", type=Path, required=True, metavar="PATH", help="serve the model in it")
    parser.add_argument("--model", help="public model name, if the repository holds more than one")
    parser.add_argument("--checkpoint", type=Path, required=True, help="PyTorch folder it was exported from")
    add_environments(parser)
    parser.add_argument("--workload", action="append", default=[], metavar="NAME", help="default passages and chunks")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="peers of this name, or whose name begins so"
    )
    parser.add_argument("--rounds", metavar="N", help=f"counted rounds (default {DEFAULT_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="passages, two settings a peer, two rounds")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of texts and turns (default %(default)s)")
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
    peers, texts, n_rounds = choose_peers(options.only), _texts(options), _rounds(options)
    with ReportFolder(options.output_folder, FILES) as folder:
        with showing_time_left() as on_step:
            measured = measure_peers(options, peers, texts, n_rounds, on_step=on_step)
        if not measured.workloads:
            console.print("interrupted before anything was measured: nothing is written")
            return {"kind": "peers", "interrupted": True}, INTERRUPTED
        settings: Json = {"seed": options.seed, "rounds": n_rounds, "quick": options.quick, "only": options.only}
        report = peers_report(measured, settings, _versions(options.environments, peers))
        written = write_peers(folder, measured, report)
    report.print(console)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)
    return report.json(), INTERRUPTED if measured.interrupted else 0


def measure_peers(
    options: argparse.Namespace, peers: Sequence[Peer], texts: Sequence[Workload], n_rounds: int, *, on_step: OnStep
) -> Measured:
    """Time ours and the peers; an interruption keeps the rounds that were complete.

    Raises:
        BenchError: the repository or the checkpoint is not there.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    files = read_model(options.model_repository, options.model)
    max_length, measured, environments = files.info.max_length, Measured(files, n_threads(files)), options.environments
    folders = ModelFolders(options.checkpoint, options.cache, environments, max_length=max_length, on_step=on_step)
    on_step("torch fp32, for reference")
    predict = load_cross_encoder(options.checkpoint, max_length=max_length, n_threads=measured.n_threads)
    references = [predict([(each.query, d) for d in each.documents], PEER_BATCH_SIZE) for each in texts]
    in_process, load = InProcess(files), OtherLoad()
    workers = Workers(
        lambda peer: python_of(environments, peer.environment),
        lambda peer: folders.get(peer.files),
        max_length=max_length,
        n_threads=measured.n_threads,
    )
    with serve(options.model_repository, files.info.name, on_progress=on_step) as server, workers:
        measured.triton_version = server.triton_version
        ours: list[Contestant] = [Served(server.client), in_process]
        try:
            for each, reference in zip(texts, references, strict=True):
                tokens = token_statistics(each, in_process.token_counts(each.query, each.documents))
                race = Race(
                    peers, each, tokens, reference, workers,
                    n_rounds=n_rounds, seed=options.seed, quick=options.quick, on_step=on_step,
                )  # fmt: skip
                measured.workloads += race.run(ours, load)
                measured.interrupted |= race.interrupted
        except KeyboardInterrupt:  # while it searched: nothing of this workload counts
            measured.interrupted = True
    measured.other_load = load.share()
    return measured


def judge(figures: Sequence[WorkloadPeers]) -> list[Json]:
    """Hold the figures of every workload against the targets."""
    found = []
    for each in figures:
        for kind, bound in (("default", MIN_OVER_DEFAULT), ("best", MIN_OVER_BEST)):
            ratios = [at.ratio for peer in each.peers if (at := getattr(peer, kind)) and at.ratio]
            if ratios:
                least = min(ratios, key=lambda ratio: ratio.median)
                what = f"{each.workload}: fastest peer at its {kind} ({least.numerator}) / served"
                found.append(target(what, least.median, at_least=bound))
    return found


def peers_report(measured: Measured, settings: Json, environments: dict[str, dict[str, str]]) -> Report:
    """Tables of each workload, remarks, targets, and what was tried."""
    machine, info, engine = describe_machine(), measured.files.info, measured.files.engine
    version = measured.triton_version
    judged = judge(measured.workloads)
    parts: list[str | Table] = [
        f"{info.name} {info.precision} ({engine}), max_length {info.max_length}, Triton {version}; {machine.cpu} "
        f"({', '.join(machine.cpu_flags)}), {measured.n_threads} threads each",
        others(measured.other_load),
        *([f"{LOUD}Interrupted: what follows was measured before."] if measured.interrupted else []),
    ]
    for figures in measured.workloads:
        parts += [workload_table(figures), *_remarks(figures)]
    parts += [targets(judged), _NOTES]
    for figures in measured.workloads:
        rows = [{"peer": peer.peer, "tried": _tried(peer)} for peer in figures.peers if peer.tried]
        title = f"{figures.workload}: seconds in the search for the best setting, before the rounds"
        parts.append(Table(title, {"peer": "peer", "setting: seconds": "tried"}, rows))
    parts += [f"{name}: {', '.join(' '.join(each) for each in found.items())}" for name, found in environments.items()]
    named: Json = {"model": info.name, "precision": info.precision, "backend": engine, "max_length": info.max_length}
    figures_: Json = {
        "environments": environments,
        **named,
        "n_threads": measured.n_threads,
        "triton_version": version,
        "other_load": measured.other_load,
        "interrupted": measured.interrupted,
        "workloads": measured.workloads,
        "targets": judged,
    }
    return Report("peers", version, settings, figures_, parts)


def workload_table(figures: WorkloadPeers) -> Table:
    """Ours, then the peers, fastest at its best first; then those without a ratio, then those not measured."""
    tokens = figures.tokens
    title = (
        f"{figures.workload}: {tokens.pairs} pairs, {tokens.total:,} tokens, longest {tokens.longest}; "
        f"{figures.n_rounds} rounds after {WARM_UP_ROUNDS} uncounted"
    )
    over = figures.served_over_in_process
    ours = [
        {"peer": f"ours, {timing.contestant}", "default_s": timing.median_s, "default_ratio": ratio, "tau": tau}
        for timing, ratio, tau in zip(
            figures.ours, (1.0, over and 1 / over), (figures.our_kendall_tau, None), strict=False
        )
    ]
    return Table(title, _COLUMNS, [*ours, *(_row(peer) for peer in sorted(figures.peers, key=_ranking))])


def write_peers(folder: ReportFolder, measured: Measured, report: Report) -> list[Path]:
    """Write the Markdown, the JSON line and the plot."""
    info, machine = measured.files.info, describe_machine()
    folder.path(LINE).write_text(compact(report.json()) + "\n", encoding="utf-8")
    how = "bars: median, lines: least to most of rounds"
    caption = f"{machine.cpu}, {measured.n_threads} threads each; {today()}; {how}"
    title = f"{info.name} {info.precision}: seconds of each peer over ours, served"
    plots.plot_peers(measured.workloads, folder.path(PLOT), title=title, caption=caption)
    markdown = report.markdown("Peers, side by side", f"![ratios]({PLOT})")
    folder.path(REPORT).write_text(markdown, encoding="utf-8")
    return folder.publish()


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


def _texts(options: argparse.Namespace) -> list[Workload]:
    names = options.workload or (DEFAULT_WORKLOADS[:1] if options.quick else DEFAULT_WORKLOADS)
    for name in names:
        if name not in DEFAULT_WORKLOADS:
            raise BenchError(f"--workload {name}: must be one of {', '.join(DEFAULT_WORKLOADS)}")
    return [workloads.BY_NAME[name](options.seed)[0] for name in dict.fromkeys(names)]


def _rounds(options: argparse.Namespace) -> int:
    value = options.rounds
    if value is None:
        return QUICK_ROUNDS if options.quick else DEFAULT_ROUNDS
    if not value.isdecimal() or int(value) < 1:
        raise BenchError(f"--rounds {value}: must be a whole number from 1")
    return int(value)


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
    over = text(figures.served_over_in_process, ".3f")
    waiting = f"All waiting workers together used {figures.idle_share:.1%} of one core."
    return [*lines, f"{waiting} Served over in process: {over}."]


def _tried(peer: PeerFigures) -> str:
    return "; ".join(f"{setting}: {seconds:.3f}" for setting, seconds in peer.tried.items())
