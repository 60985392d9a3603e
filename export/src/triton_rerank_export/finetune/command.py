"""The subcommands ``finetune`` (your own JSONL → checkpoint folder) and ``demo-model`` (trains the packaged delta)."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from triton_rerank_export.checkpoint.resolve import resolve
from triton_rerank_export.demo.delta import compress
from triton_rerank_export.demo.demo_corpus import CorpusConfig, build
from triton_rerank_export.demo.demo_model import (
    PACKAGED_DELTA,
    assemble,
    body_path,
    body_state,
    read_weights,
    weights_bytes,
)
from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.config import FinetuneConfig, FinetuneReport, Quality
from triton_rerank_export.finetune.curves import CURVES
from triton_rerank_export.finetune.data import EXAMPLE_LINE, Group, read_groups, split
from triton_rerank_export.finetune.train import evaluate, finetune
from triton_rerank_server import atomic

LARGEST_DELTA_BYTES = 6_000_000  # it is committed and packaged
DEFAULT_MINUTES = 60.0
_UNBOUNDED_EPOCHS = 1_000_000  # where minutes are the budget
_FEW = 20  # held-out groups, of which one that changes moves the mean by 0.05


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``finetune`` and ``demo-model`` to the command; each sets ``run``, which returns the exit code."""
    _register_finetune(subparsers)
    _register_demo_model(subparsers)


def _register_finetune(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    parser.add_argument("--epochs", type=int, help="passes over the data, where --minutes does not end it before")
    parser.add_argument(
        "--held-out-fraction", type=float, help="share of the queries that is only measured; 0 for none"
    )
    parser.add_argument(
        "--evaluations", type=int, help=f"measurements in between, for the curve ({FinetuneConfig.evaluations})"
    )
    _add_knobs(parser)
    parser.set_defaults(run=_run_finetune)


def _register_demo_model(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo-model",
        help="train the demo model's delta from freely available texts",
        description="Build a corpus from Debian's and Python's texts, train, and write delta.safetensors. Without "
        "--output the packaged delta is replaced, but only by one that orders the held-out queries no worse.",
    )
    parser.add_argument("--output", type=Path, help="folder for delta.safetensors and training.json")
    parser.add_argument("--cache", type=Path, default=_default_cache(), help="downloads and vectors (%(default)s)")
    parser.add_argument("--init", choices=("delta", "body"), default="delta", help="start from (%(default)s)")
    parser.add_argument("--documents", type=int, default=CorpusConfig.documents, help="corpus size (%(default)s)")
    parser.add_argument("--queries", type=int, default=CorpusConfig.queries, help="queries made of it (%(default)s)")
    parser.add_argument("--rank", type=int, default=48, help="rank of the delta's factors (%(default)s)")
    _add_knobs(parser)
    parser.set_defaults(run=_run_demo_model)


def _add_knobs(parser: argparse.ArgumentParser) -> None:
    """Add the options that are FinetuneConfig's fields; one not given keeps the config's default."""
    defaults = FinetuneConfig()
    for name, kind, text in (
        ("steps", int, "updates in all; reproducible, unlike --minutes"),
        ("minutes", float, "time budget of the training loop"),
        ("group-size", int, "documents a query in a step"),
        ("groups-per-step", int, "queries a step"),
        ("max-length", int, "tokens a pair"),
        ("max-query-tokens", int, "tokens kept of a query, at most 16 below --max-length"),
        ("learning-rate", float, "of the encoder"),
        ("head-learning-rate", float, "of the classifier"),
        ("seed", int, "of everything random"),
    ):
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, help=text if default is None else f"{text} ({default})")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), help="of the matrix products (auto)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to train (auto)")


def _config(options: argparse.Namespace) -> FinetuneConfig:
    names = [field.name for field in fields(FinetuneConfig)]
    given = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    return FinetuneConfig(**given)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triton-rerank" / "demo-model"


def _run_finetune(options: argparse.Namespace) -> int:
    groups, console = read_groups(options.data), Console(stderr=True)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(options.checkpoint)
        if not folder.is_dir():
            folder = resolve(options.checkpoint, Path(work), on_step=console.print).folder
        try:
            report = finetune(folder, groups, options.output, _config(options), console)
        except ExportError as exc:  # by the name that was given, not by where it lies
            raise ExportError(str(exc).replace(str(folder), options.checkpoint)) from exc
    _say(f"{options.output}: {_trained(report)}")
    _say(f"before: {_words(report.before)}")
    _say(f"after:  {_words(report.after)}")
    drawn = (options.output / CURVES).is_file()
    _say(f"curves: {options.output / CURVES if drawn else 'not drawn: pip install matplotlib'}")
    _say(f"export it: triton-rerank-export export --model {options.output} --model-repository model_repository")
    return 0


def _run_demo_model(options: argparse.Namespace) -> int:
    console, config = Console(stderr=True), _demo_config(options)
    body = body_path()  # a missing body is said before the work begins
    corpus = CorpusConfig(options.documents, options.queries, config.seed)
    groups = build(options.cache, corpus, console)
    with tempfile.TemporaryDirectory() as work:
        trial = _train_delta(body, groups, config, options, Path(work), console)
    _say(f"{_trained(trial.report)}; {len(groups):,} queries, at most {corpus.documents:,} documents")
    _say(f"present delta: {_words(trial.present)}")
    _say(f"new delta:     {_words(trial.new)}, {len(trial.delta) / 1e6:.1f} MB")
    if options.output is None and not no_worse(trial.new, trial.present):
        _say("the present delta is kept: the new one orders the held-out queries worse")
        return 0
    record = {"init": options.init, "rank": options.rank, "corpus": asdict(corpus), "training": asdict(config)}
    record |= {"report": asdict(trial.report), "present": asdict(trial.present), "new": asdict(trial.new)}
    _write(options.output or PACKAGED_DELTA.parent, trial.delta, record)
    if options.output is None:
        _say("MODEL_CARD.md beside it still describes the delta before: bring it up to date")
    return 0


def _demo_config(options: argparse.Namespace) -> FinetuneConfig:
    config = replace(_config(options), epochs=_UNBOUNDED_EPOCHS, evaluations=0)
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
    _say(f"wrote {path}")


def _trained(report: FinetuneReport) -> str:
    speed = report.pairs / max(report.duration_s, 1e-9)
    return f"{report.steps:,} steps, {report.pairs:,} pairs in {report.duration_s / 60:.1f} min ({speed:.0f} pairs/s)"


def _words(quality: Quality | None) -> str:
    if quality is None:
        return "nothing was held out"
    doubt = "; so few may be chance, --held-out-fraction holds more out" if quality.n_groups < _FEW else ""
    return (
        f"nDCG@10 {quality.ndcg_at_10:.4f}, pairwise accuracy {quality.pairwise_accuracy:.4f} "
        f"on {quality.n_groups} held-out groups{doubt}"
    )


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(text)
