"""``triton-rerank-export``: checkpoint → model repository, and the checks around it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from triton_rerank.console import BROKEN_PIPE, drop_output, use_utf8, written
from triton_rerank_export.errors import ExportError
from triton_rerank_server import atomic

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks would land in the progress


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, 1 if it cannot be done, 130 after Ctrl-C (the message says what holds then), 141 if the reader of the output
        went away.
    """
    use_utf8()
    options = _parser().parse_args(argv)
    return outcome("triton-rerank-export", lambda: int(options.run(options)))


def outcome(command: str, run: Callable[[], int]) -> int:
    """Run, and say on one line what ended it; returns the exit code of `main`."""
    try:
        try:
            Path.cwd()  # without one, a library below PyTorch ends the process in the middle of an export
        except FileNotFoundError as exc:
            raise ExportError("the current folder was deleted; change to one that exists") from exc
        return written(run())
    except ExportError as exc:
        print(f"{command}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as exc:
        print(f"{command}: interrupted; {exc if exc.args else 'nothing was changed'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        drop_output()
        return BROKEN_PIPE


def _check(options: argparse.Namespace) -> int:
    from triton_rerank_export.repository.check import check_repository
    from triton_rerank_server.models import foreign_entries

    with contextlib.ExitStack() as stack:
        if options.model_repository.is_dir():
            stack.enter_context(atomic.locked(options.model_repository, lambda holder: _say(f"waiting for {holder}")))
        for name in check_repository(options.model_repository):
            print(f"{name}: in order")
    for name in foreign_entries(options.model_repository):
        print(f"{name}: no model; triton-rerank-serve leaves it alone, a Triton that is to load every folder may not")
    return 0


def _activate(options: argparse.Namespace) -> int:
    from triton_rerank_export.repository import rollout, store

    version = store.activate(options.model_repository, options.model, options.version, on_step=_say)
    print(f"{options.model}: version {version} is active in {options.model_repository}")
    for target in filter(None, (options.target or "").split(",")):
        try:
            with Console(stderr=True).status(f"{target} loads version {version} beside the one it serves"):
                served = rollout.reload(target, options.model, repository=options.model_repository, on_step=_say)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"version {version} of {options.model} is active in {options.model_repository}, and whether "
                f"{target} serves it was not awaited; activate it again to know"
            ) from None
        if served != [version]:
            raise ExportError(
                f"{target}: it serves version {served} of {options.model}, not {version}; does it read "
                f"{options.model_repository}?"
            )
        print(f"{target}: serves version {version}")
    return 0


def _say(step: str) -> None:
    print(f"triton-rerank-export: {step}", file=sys.stderr)


def _verify(options: argparse.Namespace) -> int:
    from triton_rerank import RerankClient, RerankError
    from triton_rerank_export.checkpoint.catalogue import find
    from triton_rerank_export.checkpoint.published import read_scores
    from triton_rerank_export.gate.verify import format_report, published_scores, verify

    entry = find(options.model)
    name = entry.name if entry else options.model
    scores = read_scores(options.scores) if options.scores else published_scores(options.model)
    try:
        with RerankClient(options.target, model=name) as client:
            report = verify(client, scores)
    except RerankError as exc:
        raise ExportError(str(exc)) from exc
    print(format_report(report))
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    from triton_rerank_export import export_command
    from triton_rerank_export.finetune import command

    parser = argparse.ArgumentParser(prog="triton-rerank-export", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('triton-rerank-export')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export_command.register(commands)
    check = commands.add_parser("check", help="is the repository what was exported?")
    check.add_argument("--model-repository", type=Path, required=True)
    check.set_defaults(run=_check)
    activate = commands.add_parser("activate", help="serve another version that is in the repository")
    activate.add_argument("--model", required=True, help="public name")
    activate.add_argument("--version", type=int, help="default: the newest")
    activate.add_argument("--model-repository", type=Path, required=True)
    activate.add_argument(
        "--target", metavar="HOST:PORT", help="running servers that are to load it, with commas between (gRPC)"
    )
    activate.set_defaults(run=_activate)
    verify = commands.add_parser("verify", help="does a running server give the published scores?")
    verify.add_argument("--model", required=True, help="public name")
    verify.add_argument("--target", metavar="HOST:PORT", default="127.0.0.1:8001", help="default %(default)s")
    verify.add_argument("--scores", type=Path, help="JSON lines with query, document, logit; default: the catalogue's")
    verify.set_defaults(run=_verify)
    command.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
