"""``triton-rerank-bench``: speed of served rerankers."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triton_rerank import RerankError
from triton_rerank_bench import (
    client_report,
    gateway_command,
    gpu_command,
    load_command,
    peers_command,
    perf_command,
    report,
)
from triton_rerank_bench.client_cost import measure_client_cost
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.rerankers import name_rerankers
from triton_rerank_bench.speed import measure_speed
from triton_rerank_bench.splitting import measure_splitting
from triton_rerank_server import ServerStartError, atomic

DEFAULT_ROUNDS = 7
CLIENT_ROUNDS = 200  # a tenth of it with long documents
SPLITTING_ROUNDS = 3
DEFAULT_SEED = 1
WIDTH = 110  # of a report that goes to a file or a pipe


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if ``--check`` is given and a target was missed; 2 if nothing could be measured; 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        _check_output(options.output)
        document, code = _COMMANDS[options.command](options, console)
        if options.output:
            atomic.write_file(options.output, report.indented(document).encode())
    except (BenchError, RerankError, ServerStartError, OSError) as exc:
        print(f"triton-rerank-bench: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as exc:
        print(f"triton-rerank-bench: interrupted; {exc if exc.args else 'nothing is kept'}", file=sys.stderr)
        return INTERRUPTED
    print(report.compact(document))
    return code


def _speed(options: argparse.Namespace, console: Console) -> tuple[report.Json, int]:
    (reranker,) = name_rerankers([options.model_repository], options.model)
    with _progress() as progress:
        figures = measure_speed(
            reranker.model_repository,
            reranker.model,
            options.checkpoint,
            n_rounds=options.rounds,
            seed=options.seed,
            progress=progress,
        )
    report.print_speed(console, figures)
    missed = any(target.passed is False for target in figures.targets)
    return report.speed_json(figures, {"seed": options.seed}), int(options.check and missed)


def _client(options: argparse.Namespace, console: Console) -> tuple[report.Json, int]:
    (reranker,) = name_rerankers([options.model_repository], options.model)
    with _progress() as progress:
        figures = measure_client_cost(
            reranker.model_repository, reranker.model, n_rounds=options.rounds, seed=options.seed, progress=progress
        )
    client_report.print_client_cost(console, figures)
    missed = any(target.passed is False for target in figures.targets)
    return client_report.client_cost_json(figures, {"seed": options.seed}), int(options.check and missed)


def _splitting(options: argparse.Namespace, console: Console) -> tuple[report.Json, int]:
    (reranker,) = name_rerankers([options.model_repository], options.model)
    with _progress() as progress:
        figures = measure_splitting(
            reranker.model_repository, reranker.model, n_rounds=options.rounds, seed=options.seed, progress=progress
        )
    client_report.print_splitting(console, figures)
    return client_report.splitting_json(figures, {"seed": options.seed}), 0


_COMMANDS = {
    "speed": _speed,
    "client": _client,
    "splitting": _splitting,
    "load": load_command.run,
    "perf": perf_command.run,
    "peers": peers_command.run,
    "gpu": gpu_command.run,
    "gateway": gateway_command.run,
}


def _check_output(path: Path | None) -> None:
    """Before anything is measured, rather than after: by opening it, since permissions do not tell of every disk."""
    if path is None:
        return
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as exc:
        raise BenchError(f"--output {path}: cannot be written; give a file in a folder that is there") from exc
    if not existed:
        path.unlink()


def _progress() -> Progress:
    # On stderr: stdout carries the report, whose last line is JSON.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=2)  # it must not cost what is timed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triton-rerank-bench", description="Speed of served rerankers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('triton-rerank-bench')}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_speed(commands.add_parser("speed", help="seconds and memory, against sentence-transformers"))
    _add_client(commands.add_parser("client", help="what the client adds to a raw tritonclient call"))
    _add_splitting(commands.add_parser("splitting", help="what splitting a list does to padding, batches and seconds"))
    load_command.add_arguments(commands.add_parser("load", help="pairs a second and latency under load"))
    perf_command.add_arguments(commands.add_parser("perf", help="find the setting that serves most on this machine"))
    peers_command.add_arguments(commands.add_parser("peers", help="other rerankers beside ours, in one run"))
    gateway_command.add_arguments(commands.add_parser("gateway", help="HTTP over the client, and beside Infinity's"))
    gpu_command.add_arguments(commands.add_parser("gpu", help="served on a GPU, beside sentence-transformers on it"))
    return parser


def _add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-repository", required=True, metavar="PATH", help="serve and time the model in it")
    parser.add_argument("--checkpoint", type=Path, required=True, help="PyTorch folder it was exported from")
    parser.add_argument("--rounds", type=_positive, default=DEFAULT_ROUNDS, help="counted rounds (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    _add_common(parser, "of the texts and of the turns")


def _add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-repository", required=True, metavar="PATH", help="serve and call the model in it")
    parser.add_argument("--rounds", type=_positive, default=CLIENT_ROUNDS, help="counted rounds (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    _add_common(parser, "of the texts and of the turns")


def _add_splitting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-repository", required=True, metavar="PATH", help="serve and call the model in it")
    parser.add_argument("--rounds", type=_positive, default=SPLITTING_ROUNDS, help="rounds (default %(default)s)")
    _add_common(parser, "of the texts and of the turns")


def _add_common(parser: argparse.ArgumentParser, seed_of: str) -> None:
    parser.add_argument("--model", help="public model name, if the repository holds more than one")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help=f"{seed_of} (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the report there as JSON")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
