"""The subcommand ``finetune``: your own JSONL → checkpoint folder."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from triton_rerank_export.arguments import add_options, chosen
from triton_rerank_export.checkpoint.resolve import resolve
from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.config import FinetuneConfig, FinetuneReport, Quality
from triton_rerank_export.finetune.data import EXAMPLE_LINE, read_groups
from triton_rerank_export.finetune.progress import CURVES
from triton_rerank_export.finetune.train import finetune

KNOBS = (  # fields of FinetuneConfig that are options wherever something is trained
    *("steps", "minutes", "group_size", "groups_per_step", "max_length", "max_query_tokens"),
    *("learning_rate", "head_learning_rate", "seed", "precision", "device"),
)
_FEW = 20  # held-out groups, of which one that changes moves the mean by 0.05


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``finetune`` to the command; it sets ``run``, which returns the exit code."""
    parser = subparsers.add_parser(
        "finetune",
        help="fine-tune a cross-encoder on your own data",
        description=f"Fine-tune a cross-encoder on JSONL lines such as {EXAMPLE_LINE} ('scores', a teacher's, may be "
        "left out). Part of the queries is held out and measured before and after.",
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a classifier of one label: a folder, a known name, or a Hugging Face id"
    )
    parser.add_argument("--data", type=Path, required=True, help="JSONL file")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to write")
    add_options(parser, FinetuneConfig, ("epochs", "held_out_fraction", "evaluations", *KNOBS))
    parser.set_defaults(run=_run_finetune)


def _run_finetune(options: argparse.Namespace) -> int:
    groups, console = read_groups(options.data), Console(stderr=True)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(options.checkpoint)
        if not folder.is_dir():
            folder = resolve(options.checkpoint, Path(work), on_step=console.print).folder
        try:
            report = finetune(folder, groups, options.output, chosen(FinetuneConfig, options), console)
        except ExportError as exc:  # by the name that was given, not by where it lies
            raise ExportError(str(exc).replace(str(folder), options.checkpoint)) from exc
    say(f"{options.output}: {trained(report)}")
    say(f"before: {words(report.before)}")
    say(f"after:  {words(report.after)}")
    drawn = (options.output / CURVES).is_file()
    say(f"curves: {options.output / CURVES if drawn else 'not drawn: pip install matplotlib'}")
    say(f"export it: triton-rerank-export export --model {options.output} --model-repository model_repository")
    return 0


def trained(report: FinetuneReport) -> str:
    """How long it took, for people."""
    speed = report.pairs / max(report.duration_s, 1e-9)
    return f"{report.steps:,} steps, {report.pairs:,} pairs in {report.duration_s / 60:.1f} min ({speed:.0f} pairs/s)"


def words(quality: Quality | None) -> str:
    """How good it is, for people."""
    if quality is None:
        return "nothing was held out"
    doubt = "; so few may be chance, --held-out-fraction holds more out" if quality.n_groups < _FEW else ""
    return (
        f"nDCG@10 {quality.ndcg_at_10:.4f}, pairwise accuracy {quality.pairwise_accuracy:.4f} "
        f"on {quality.n_groups} held-out groups{doubt}"
    )


def say(text: str) -> None:
    """Print it as it is."""
    Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(text)
