"""``triton-rerank-export export``, ``list`` and ``models``."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from triton_rerank_export.causal import PROMPTS
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.triton_config import ACCELERATORS, ENGINES, PRECISIONS, SCHEDULINGS, SPECIAL_TOKENS_IN_TEXT
from triton_rerank_export.warmup import WARMUPS

if TYPE_CHECKING:
    from triton_rerank_export.pipeline import ExportResult

_DEFAULTS = ExportOptions()


def register(commands: Any) -> None:
    """Add the three commands to argparse's subparsers."""
    export = commands.add_parser("export", help="checkpoint → model repository")
    export.add_argument(
        "--model", required=True, help="a known name, a Hugging Face id (org/name@revision), or a folder"
    )
    export.add_argument("--model-repository", type=Path, required=True)
    _add_artefact_options(export)
    _add_serving_options(export)
    _add_version_options(export)
    export.set_defaults(run=_export)
    listed = commands.add_parser("list", help="what is in the repository: versions, precision, licence")
    listed.add_argument("--model-repository", type=Path, required=True)
    listed.set_defaults(run=_list)
    models = commands.add_parser("models", help="list the models that have a name here")
    models.set_defaults(run=_models)


def _add_artefact_options(parser: argparse.ArgumentParser) -> None:
    _add(parser, "precision", "bf16 or int8 for CPUs, fp16 for GPUs, fp32 for both", choices=PRECISIONS)
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="default: openvino for bf16, else onnxruntime; openvino makes int8 static, which is faster with VNNI",
    )
    _add(parser, "accelerator", "tensorrt: ONNX Runtime runs the graph through it", choices=ACCELERATORS)
    parser.add_argument(
        "--native", action="store_true", help="serve by Triton's own ONNX Runtime backend, not ours (docs/export.md)"
    )
    _add(parser, "scheduling", "continuous: short requests are not kept waiting by long ones", choices=SCHEDULINGS)
    parser.add_argument("--name", help="public name; default: the known name, or the last part of the id or folder")
    parser.add_argument("--label", help="number or name of the label whose logit is the score, where there are several")
    parser.add_argument("--max-length", type=int, help="tokens of the longest pair; default: the model's, 1024 at most")
    parser.add_argument(
        "--special-tokens-in-text",
        choices=SPECIAL_TOKENS_IN_TEXT,
        default=_DEFAULTS.special_tokens_in_text,
        help="what [SEP] and the like are inside a query or document; special: as Hugging Face; default %(default)s",
    )
    parser.add_argument("--accept-licence", metavar="NAME", help="of weights that may not be used for everything")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="take pytorch_model.bin; it can run its maker's code"
    )
    parser.add_argument(
        "--prompt",
        help=f"that a causal reranker was trained with ({', '.join(PROMPTS)}); default: by its name or class",
    )
    parser.add_argument("--reduce-range", action="store_true", help="7-bit int8 weights, for CPUs without VNNI")
    parser.add_argument(
        "--timing-cache", type=Path, default=_default_timing_cache(), help="of TensorRT; default %(default)s"
    )


def _add_serving_options(parser: argparse.ArgumentParser) -> None:
    _add(parser, "max_batch_size", "pairs in a request and in an execution")
    _add(parser, "queue_delay_us", "µs that requests may wait for others")
    _add(parser, "max_queue_size", "requests that may wait")
    _add(parser, "queue_timeout_us", "µs until a waiting request is refused")
    parser.add_argument("--warmup", choices=WARMUPS, help="default: full for fp16, light for the others")
    parser.add_argument("--response-cache", action="store_true", help="let Triton cache encoder responses")


def _add_version_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replace", action="store_true", help="begin again at version 1")
    _add(parser, "keep_versions", "versions that stay, the new one included")


def _add(parser: argparse.ArgumentParser, field: str, text: str, **more: Any) -> None:
    """Add the option of a field of `ExportOptions`, with its default."""
    default = getattr(_DEFAULTS, field)
    flag = "--" + field.replace("_", "-")
    parser.add_argument(flag, type=type(default), default=default, help=f"{text}; default %(default)s", **more)


def _default_timing_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "triton-rerank" / "tensorrt-timing.cache"


def _export(options: argparse.Namespace) -> int:
    from triton_rerank_export.pipeline import export_model
    from triton_rerank_export.staging import told

    wanted = ExportOptions(**{field.name: getattr(options, field.name) for field in fields(ExportOptions)})
    console = Console(stderr=True)
    with told(options.model_repository), console.status("starting") as status:

        def on_step(step: str) -> None:
            if step.startswith("downloading"):
                status.stop()  # the download has a bar of its own
                console.print(step)
                return
            status.update(step)
            status.start()
            if not console.is_terminal and not step.startswith("comparing"):
                console.print(step)

        result = export_model(options.model, options.model_repository, wanted, on_step=on_step)
    print(_summary(result, options.model, options.model_repository, wanted))
    return 0


def _summary(result: ExportResult, model: str, repository: Path, wanted: ExportOptions) -> str:
    report, name, version = result.report, result.manifest.model.name, result.manifest.model.version
    first = (
        f"{model} as {wanted.precision} in {repository}: {report.pairs} pairs compared with PyTorch, largest logit "
        f"difference {report.max_logit_difference:.2g}, Kendall's tau {report.kendall_tau:.4f} "
        f"({report.clear_tau:.4f} of clearly different documents), same best document in {report.top1_kept:.0%} of the "
        f"queries, {report.top10_overlap:.1%} of the ten best kept"
    )
    there = "" if len(result.versions) == 1 else f"; versions {', '.join(map(str, result.versions))} are there"
    second = f"version {version} of {name} is active{there}" if result.changed else (
        f"version {version} of {name} was this very export already; nothing was changed"
    )  # fmt: skip
    return "\n".join([first, second, *result.left, *result.manifest.notes])


def _models(_: argparse.Namespace) -> int:
    from triton_rerank_export.catalogue import CATALOGUE

    entries = [
        (entry.name, entry.params, str(entry.max_length), entry.licence, entry.source) for entry in CATALOGUE.values()
    ]
    _print_table([("name", "params", "max_length", "licence", "source"), *entries])
    return 0


def _list(options: argparse.Namespace) -> int:
    from triton_rerank_export import listing
    from triton_rerank_export.errors import ExportError

    rows, faults = listing.rows(options.model_repository)
    _print_table([listing.HEADER, *rows])
    if faults:
        raise ExportError("\n  ".join(faults))
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
