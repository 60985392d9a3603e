"""``triton-rerank-bench``: speed of served rerankers."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from triton_rerank import RerankError
from triton_rerank_bench import report
from triton_rerank_bench.compare import command as peers
from triton_rerank_bench.errors import INTERRUPTED, BenchError
from triton_rerank_bench.gateway import command as gateway
from triton_rerank_bench.gpu import command as gpu
from triton_rerank_bench.load import command as load
from triton_rerank_bench.tune import command as perf
from triton_rerank_server import ServerStartError, atomic

WIDTH = 110  # of a report that goes to a file or a pipe

_COMMANDS = {  # name -> (declares its options, runs it, help)
    "speed": (peers.add_speed_arguments, peers.run_speed, "beside sentence-transformers as it is installed here"),
    "load": (load.add_arguments, load.run, "pairs a second and latency under load"),
    "perf": (perf.add_arguments, perf.run, "find the setting that serves most on this machine"),
    "peers": (peers.add_arguments, peers.run, "other rerankers beside ours, in one run"),
    "gateway": (gateway.add_arguments, gateway.run, "HTTP over the client, and beside Infinity's"),
    "gpu": (gpu.add_arguments, gpu.run, "served on a GPU, beside sentence-transformers on it"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if ``--check`` is given and a target was missed; 2 if nothing could be measured; 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        _check_output(options.output)
        document, code = _COMMANDS[options.command][1](options, console)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triton-rerank-bench", description="Speed of served rerankers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('triton-rerank-bench')}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (add_arguments, _, words) in _COMMANDS.items():
        add_arguments(commands.add_parser(name, help=words))
    return parser


if __name__ == "__main__":
    sys.exit(main())
