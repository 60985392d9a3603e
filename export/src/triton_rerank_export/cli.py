"""``triton-rerank-export``: checkpoint → model repository, and the checks around it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from triton_rerank_export.errors import ExportError
from triton_rerank_export.triton_config import PRECISIONS

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks would land in the progress


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, 1 if it cannot be done (the repository is then as it was), 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except ExportError as exc:
        print(f"triton-rerank-export: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("triton-rerank-export: interrupted; nothing was changed", file=sys.stderr)
        return 130


def _export(options: argparse.Namespace) -> int:
    from triton_rerank_export.pipeline import export_model

    console = Console(stderr=True)
    with console.status("starting") as status:

        def on_step(step: str) -> None:
            status.update(step)
            if not console.is_terminal and not step.startswith("comparing"):
                console.print(step)

        report = export_model(
            options.model, options.model_repository, precision=options.precision, name=options.name, on_step=on_step
        )
    print(
        f"{options.model} as {options.precision} in {options.model_repository}: {report.pairs} pairs compared with "
        f"PyTorch, largest logit difference {report.max_logit_difference:.2g}, Kendall's tau {report.kendall_tau:.4f}, "
        f"same best document in {report.top1_kept:.0%} of the queries"
    )
    return 0


def _check(options: argparse.Namespace) -> int:
    from triton_rerank_export.repository import check_repository

    for name in check_repository(options.model_repository):
        print(f"{name}: in order")
    return 0


def _parser() -> argparse.ArgumentParser:
    from triton_rerank_export import finetune_command

    parser = argparse.ArgumentParser(prog="triton-rerank-export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="checkpoint → model repository")
    export.add_argument("--model", required=True, help="a known name, or a checkpoint folder")
    export.add_argument("--model-repository", type=Path, required=True)
    export.add_argument("--precision", choices=PRECISIONS, default="int8", help="default %(default)s, for CPUs")
    export.add_argument("--name", help="public name; default: the known name, or the folder's")
    export.set_defaults(run=_export)
    check = commands.add_parser("check", help="is the repository what was exported?")
    check.add_argument("--model-repository", type=Path, required=True)
    check.set_defaults(run=_check)
    finetune_command.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
