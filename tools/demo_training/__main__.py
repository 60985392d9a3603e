"""Trains the demo model's delta again from freely available texts: `make demo-model`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from tools.demo_training.compress import compress
from tools.demo_training.corpus import CorpusConfig, build
from triton_rerank.console import use_utf8
from triton_rerank_export.arguments import add_options, chosen
from triton_rerank_export.cli import outcome
from triton_rerank_export.demo.demo_model import (
    PACKAGED_DELTA,
    assemble,
    body_path,
    body_state,
    read_weights,
    weights_bytes,
)
from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.command import KNOBS, say, trained, words
from triton_rerank_export.finetune.config import FinetuneConfig, FinetuneReport, Quality
from triton_rerank_export.finetune.data import Group, split
from triton_rerank_export.finetune.train import evaluate, finetune
from triton_rerank_server import atomic

LARGEST_DELTA_BYTES = 6_000_000  # it is committed and packaged
DEFAULT_MINUTES = 60.0
_UNBOUNDED_EPOCHS = 1_000_000  # where minutes are the budget


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is that of `outcome`."""
    use_utf8()
    options = _parser().parse_args(argv)
    return outcome("make demo-model", lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make demo-model",
        description="Build a corpus from Debian's and Python's texts, train, and write delta.safetensors. Without "
        "--output the packaged delta is replaced, but only by one that orders the held-out queries no worse.",
    )
    parser.add_argument("--output", type=Path, help="folder for delta.safetensors and training.json")
    parser.add_argument("--cache", type=Path, default=_default_cache(), help="downloads and vectors (%(default)s)")
    parser.add_argument("--init", choices=("delta", "body"), default="delta", help="start from (%(default)s)")
    parser.add_argument("--documents", type=int, default=CorpusConfig.documents, help="corpus size (%(default)s)")
    parser.add_argument("--queries", type=int, default=CorpusConfig.queries, help="queries made of it (%(default)s)")
    parser.add_argument("--rank", type=int, default=48, help="rank of the delta's factors (%(default)s)")
    add_options(parser, FinetuneConfig, KNOBS)
    return parser


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triton-rerank" / "demo-model"


def _run(options: argparse.Namespace) -> int:
    console, config = Console(stderr=True), _demo_config(options)
    body = body_path()  # a missing body is said before the work begins
    corpus = CorpusConfig(options.documents, options.queries, config.seed)
    groups = build(options.cache, corpus, console)
    with tempfile.TemporaryDirectory() as work:
        trial = _train_delta(body, groups, config, options, Path(work), console)
    say(f"{trained(trial.report)}; {len(groups):,} queries, at most {corpus.documents:,} documents")
    say(f"present delta: {words(trial.present)}")
    say(f"new delta:     {words(trial.new)}, {len(trial.delta) / 1e6:.1f} MB")
    if options.output is None and not no_worse(trial.new, trial.present):
        say("the present delta is kept: the new one orders the held-out queries worse")
        return 0
    record = {"init": options.init, "rank": options.rank, "corpus": asdict(corpus), "training": asdict(config)}
    record |= {"report": asdict(trial.report), "present": asdict(trial.present), "new": asdict(trial.new)}
    _write(options.output or PACKAGED_DELTA.parent, trial.delta, record)
    if options.output is None:
        say("MODEL_CARD.md beside it still describes the delta before: bring it up to date")
    return 0


def _demo_config(options: argparse.Namespace) -> FinetuneConfig:
    config = replace(chosen(FinetuneConfig, options), epochs=_UNBOUNDED_EPOCHS, evaluations=0)
    budgeted = config.steps is not None or config.minutes is not None
    return config if budgeted else replace(config, minutes=DEFAULT_MINUTES)


class _Trial(NamedTuple):
    """A trained delta as a file's bytes, and how it compares."""

    delta: bytes
    report: FinetuneReport
    present: Quality
    new: Quality


def _train_delta(
    body: Path, groups: list[Group], config: FinetuneConfig, options: argparse.Namespace, work: Path, console: Console
) -> _Trial:
    """Train, compress, and measure what is left after compression against the present delta."""
    present = assemble(work / "present")
    start = present if options.init == "delta" else body
    report = finetune(start, groups, work / "tuned", config, console)
    delta = compress(body_state(body), read_weights(work / "tuned" / "model.safetensors"), rank=options.rank)
    content = weights_bytes(delta)
    if len(content) > LARGEST_DELTA_BYTES:
        raise ExportError(f"the delta has {len(content):,} bytes, at most {LARGEST_DELTA_BYTES:,}; lower --rank")
    (work / "delta.safetensors").write_bytes(content)
    new = assemble(work / "new", delta_path=work / "delta.safetensors")
    _, held_out = split(groups, fraction=config.held_out_fraction, limit=config.held_out_limit, seed=config.seed)
    measured = [evaluate(checkpoint, held_out, config, console) for checkpoint in (present, new)]
    return _Trial(content, report, *measured)


def no_worse(new: Quality, present: Quality) -> bool:
    """Tell whether the new model orders the same queries at least as well by both measures."""
    return new.ndcg_at_10 >= present.ndcg_at_10 and new.pairwise_accuracy >= present.pairwise_accuracy


def _write(folder: Path, delta: bytes, record: dict[str, object]) -> None:
    """Write the delta and how it was made; a delta already there is replaced in one step."""
    path = folder / PACKAGED_DELTA.name
    atomic.write_file(path, delta)
    atomic.write_file(folder / "training.json", (json.dumps(record, indent=2) + "\n").encode())
    say(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
