"""``triton-rerank-bench peers``: ours beside other libraries, on the same weights and texts, in one run."""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path

from rich.console import Console

from triton_rerank_bench import peers_report, report, workloads
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.peers.catalogue import PEERS, Peer
from triton_rerank_bench.peers.measure import Plan, measure_peers
from triton_rerank_bench.report_folder import ReportFolder
from triton_rerank_bench.time_left import showing_time_left
from triton_rerank_bench.workloads import Workload

DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 2
DEFAULT_SEED = 1
DEFAULT_WORKLOADS = ("passages", "chunks")
DEFAULT_OUTPUT = Path("perf")
DEFAULT_ENVIRONMENTS = Path(".venv-peers")
DEFAULT_CACHE = Path(".cache/peers")
_PACKAGES = (
    "sentence-transformers", "transformers", "torch", "optimum", "optimum-onnx", "optimum-intel", "openvino", "nncf",
    "onnxruntime", "infinity-emb", "fastembed", "FlashRank", "tokenizers",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    parser.add_argument("--model-repository", type=Path, required=True, metavar="PATH", help="serve the model in it")
    parser.add_argument("--model", help="public model name, if the repository holds more than one")
    parser.add_argument("--checkpoint", type=Path, required=True, help="PyTorch folder it was exported from")
    parser.add_argument("--environments", type=Path, default=DEFAULT_ENVIRONMENTS, help="default %(default)s")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="for the peers' files (default %(default)s)")
    parser.add_argument("--workload", action="append", default=[], metavar="NAME", help="default passages and chunks")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="peers of this name, or whose name begins so"
    )
    parser.add_argument("--rounds", metavar="N", help=f"counted rounds (default {DEFAULT_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="passages, two settings a peer, two rounds")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of texts and turns (default %(default)s)")
    parser.add_argument(
        "--output", dest="output_folder", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="default %(default)s"
    )
    parser.set_defaults(output=None)  # the report goes into the folder, nowhere else


def run(options: argparse.Namespace, console: Console) -> tuple[report.Json, int]:
    """Measure, print the tables and write the report.

    Returns:
        The report as plain data, and 0, or 130 if the user interrupted it.

    Raises:
        BenchError: an option is wrong, or ours cannot be measured; nothing is written then.
        ServerStartError: Triton did not start.
        RerankError: the served model did not answer.
    """
    plan = Plan(
        model_repository=options.model_repository,
        model=options.model,
        checkpoint=options.checkpoint,
        environments=options.environments,
        cache=options.cache,
        peers=choose_peers(options.only),
        texts=_texts(options),
        n_rounds=_rounds(options),
        seed=options.seed,
        quick=options.quick,
    )
    with ReportFolder(options.output_folder, peers_report.FILES) as folder:
        with showing_time_left() as on_step:
            measured = measure_peers(plan, on_step=on_step)
        if not measured.workloads:
            console.print("interrupted before anything was measured: nothing is written")
            return {"kind": "peers", "interrupted": True}, INTERRUPTED
        environments = _versions(plan)
        settings: report.Json = {"seed": plan.seed, "rounds": plan.n_rounds, "quick": plan.quick, "only": options.only}
        document = peers_report.peers_json(measured, settings, environments)
        written = peers_report.write_peers(folder, measured, document, environments)
    peers_report.print_peers(console, measured)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)
    return document, INTERRUPTED if measured.interrupted else 0


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
    name, text = peer.name.lower(), beginning.lower()
    whole = any(text == each.name.lower() for each in PEERS)
    return name == text if whole else name.startswith(text)


def _texts(options: argparse.Namespace) -> list[Workload]:
    names = options.workload or (DEFAULT_WORKLOADS[:1] if options.quick else DEFAULT_WORKLOADS)
    for name in names:
        if name not in DEFAULT_WORKLOADS:
            raise BenchError(f"--workload {name}: must be one of {', '.join(DEFAULT_WORKLOADS)}")
    return [workloads.BY_NAME[name](options.seed)[0] for name in dict.fromkeys(names)]


def _rounds(options: argparse.Namespace) -> int:
    text = options.rounds
    if text is None:
        return QUICK_ROUNDS if options.quick else DEFAULT_ROUNDS
    if not text.isdecimal() or int(text) < 1:
        raise BenchError(f"--rounds {text}: must be a whole number from 1")
    return int(text)


def _versions(plan: Plan) -> dict[str, dict[str, str]]:
    """Of the packages that matter, environment by environment."""
    return {
        name: _installed(plan.environments / name)
        for name in dict.fromkeys(peer.environment for peer in plan.peers)
        if (plan.environments / name).is_dir()
    }


def _installed(environment: Path) -> dict[str, str]:
    folders = [str(path) for path in environment.glob("lib/python*/site-packages")]
    found = {each.metadata["Name"].lower(): each.version for each in metadata.distributions(path=folders)}
    return {name: found[name.lower()] for name in _PACKAGES if name.lower() in found}
