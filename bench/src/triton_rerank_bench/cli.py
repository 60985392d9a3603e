"""``triton-rerank-bench``: speed of served rerankers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from triton_rerank import RerankError
from triton_rerank_bench import report
from triton_rerank_bench.compare import command as peers
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.gpu import command as gpu
from triton_rerank_bench.load import command as load
from triton_rerank_bench.tune import command as perf
from triton_rerank_server import ServerStartError, atomic

WIDTH = 110  # of a report that goes to a file or a pipe

Command = tuple[
    Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace, Console], tuple[report.Json, int]], str
]
COMMANDS: dict[str, Command] = {  # name -> (declares its options, runs it, help)
    "speed": (peers.add_speed_arguments, peers.run_speed, "beside sentence-transformers as it is installed here"),
    "load": (load.add_arguments, load.run, "pairs a second and latency under load"),
    "perf": (perf.add_arguments, perf.run, "find the setting that serves most on this machine"),
    "peers": (peers.add_arguments, peers.run, "other rerankers beside ours, in one run"),
    "gpu": (gpu.add_arguments, gpu.run, "served on a GPU, beside sentence-transformers on it"),
}


def main(argv: list[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run one of the commands.

    Returns:
        0; 1 if ``--check`` is given and a target was missed; 2 if nothing could be measured; 130 after Ctrl-C.
    """
    options = _parser(commands).parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        _check_output(options.output)
        document, code = commands[options.command][1](options, console)
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


def _parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triton-rerank-bench", description="Speed of served rerankers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('triton-rerank-bench')}")
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, (add_arguments, _, words) in commands.items():
        add_arguments(parsers.add_parser(name, help=words))
    return parser


if __name__ == "__main__":
    sys.exit(main())
