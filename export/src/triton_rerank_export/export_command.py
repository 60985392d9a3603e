"""``triton-rerank-export export``, ``set``, ``list`` and ``models``."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from triton_rerank_export.checkpoint.causal import PROMPTS
from triton_rerank_export.options import LEAST_VERSIONS, MOST_VERSIONS, ExportOptions
from triton_rerank_export.repository.settings import SETTINGS, Settings, check_bounds, flag
from triton_rerank_export.repository.triton_config import (
    ACCELERATORS,
    ENGINES,
    GRAPHS,
    PRECISIONS,
    SCHEDULINGS,
    SPECIAL_TOKENS_IN_TEXT,
    ServedModel,
)
from triton_rerank_export.repository.warmup import WARMUPS

if TYPE_CHECKING:
    from triton_rerank_export.pipeline import ExportResult

_DEFAULTS = ExportOptions()
_SETTINGS = {
    "instances": "instances of the encoder",
    "threads": "threads of an instance; 0: the engine's choice",
    "tokenizers": "instances of the tokenizer",
    "length_ladder": "padded lengths, such as 64,128,512; '': the usual ones",
    "micro_batch_tokens": "padded tokens computed at once, by our encoder over ONNX Runtime; 0: its choice",
    "cuda_graph_shapes": "rows x width of CUDA graphs, such as 1x32,8x128; '': none",
    "max_batch_size": "pairs in a request and in an execution",
    "queue_delay_us": "µs that requests may wait for others",
    "max_queue_size": "requests that may wait; 0: no bound",
    "queue_timeout_us": "µs until a waiting request is refused; 0: never",
    "scheduling": "continuous: short requests are not kept waiting by long ones; executions: as Triton merges them",
}


def register(commands: Any) -> None:
    """Add the four commands to argparse's subparsers."""
    export = commands.add_parser("export", help="checkpoint → model repository")
    export.add_argument(
        "--model", required=True, help="a known name, a Hugging Face id (org/name@revision), or a folder"
    )
    export.add_argument("--model-repository", type=Path, required=True)
    _add_artefact_options(export)
    _add_settings(export)
    export.add_argument("--warmup", choices=WARMUPS, help="default: full for fp16, light for the others")
    export.add_argument("--response-cache", action="store_true", help="let Triton cache encoder responses")
    _add_version_options(export, "begin again at version 1, with default settings")
    export.set_defaults(run=_export)
    changed = commands.add_parser("set", help="serve a model that is there with other settings, as a new version")
    changed.add_argument("--model", required=True, help="public name")
    changed.add_argument("--model-repository", type=Path, required=True)
    changed.add_argument(
        "--from", type=Path, dest="source", metavar="REPOSITORY", help="take its model, as it is there"
    )
    _add_settings(changed)
    _add_version_options(changed, "in place of all versions that are there, and of any precision")
    changed.set_defaults(run=_set)
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
        "--graph",
        choices=GRAPHS,
        help="flat: nothing is computed for padding; not in bf16 or for OpenVINO; default: as there is, or padded",
    )
    parser.add_argument(
        "--native", action="store_true", help="serve by Triton's own ONNX Runtime backend, not ours (docs/export.md)"
    )
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


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "settings", "what `make perf` tunes; what is not given is as in the version that is there"
    )
    for name, text in _SETTINGS.items():
        kind: Any = {"length_ladder": _ladder, "cuda_graph_shapes": str, "scheduling": str}.get(name, int)
        choices = SCHEDULINGS if name == "scheduling" else None
        group.add_argument(flag(name), type=kind, choices=choices, help=text + _default(name))


def _default(name: str) -> str:
    value = getattr(ServedModel, name)
    return "" if value in ((), "") else f"; default {value}"


def _add_version_options(parser: argparse.ArgumentParser, replace: str) -> None:
    parser.add_argument("--replace", action="store_true", help=replace)
    _add(parser, "keep_versions", "versions that stay, the new one and the one before included")


def _add(parser: argparse.ArgumentParser, field: str, text: str, **more: Any) -> None:
    """Add the option of a field of `ExportOptions`, with its default."""
    default = getattr(_DEFAULTS, field)
    parser.add_argument(flag(field), type=type(default), default=default, help=f"{text}; default %(default)s", **more)


def _ladder(value: str) -> tuple[int, ...]:
    """Padded lengths, for argparse."""
    try:
        return tuple(int(rung) for rung in value.split(",")) if value else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: it must be whole numbers, such as 64,128,512") from None


def _default_timing_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "triton-rerank" / "tensorrt-timing.cache"


def _export(options: argparse.Namespace) -> int:
    from triton_rerank_export.pipeline import export_model
    from triton_rerank_export.repository.staging import told

    wanted = ExportOptions(**{field.name: getattr(options, field.name) for field in fields(ExportOptions)})
    console = Console(stderr=True)
    with told(options.model_repository), console.status("starting") as status:

        def on_step(step: str) -> None:
            """Tell a step in the spinner, or as a line where there is no terminal."""
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


def _set(options: argparse.Namespace) -> int:
    from triton_rerank_export.errors import ExportError
    from triton_rerank_export.repository.changed_settings import as_it_is, change_settings

    settings = Settings(**{name: getattr(options, name) for name in SETTINGS})
    check_bounds("keep_versions", options.keep_versions, LEAST_VERSIONS, MOST_VERSIONS)
    if not settings.given and options.source is None:
        there = as_it_is(options.model_repository, options.model)
        raise ExportError(f"{options.model} is served with {there}; give what is to be another, such as --instances 2")
    done, changed = change_settings(
        options.model_repository,
        options.model,
        settings,
        source=options.source,
        replace=options.replace,
        keep=options.keep_versions,
        on_step=Console(stderr=True).print,
    )
    if done is None:
        print(f"{options.model}: {options.model_repository} serves it so already; nothing was changed")
        return 0
    model = done.manifest.model
    active = f"version {model.version} of {model.name} ({model.precision}) is active in {options.model_repository}"
    print("\n".join([*changed, active, *done.left]))
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
    from triton_rerank_export.checkpoint.catalogue import CATALOGUE

    entries = [
        (entry.name, entry.params, str(entry.max_length), entry.licence, entry.source) for entry in CATALOGUE.values()
    ]
    _print_table([("name", "params", "max_length", "licence", "source"), *entries])
    return 0


def _list(options: argparse.Namespace) -> int:
    from triton_rerank_export.errors import ExportError
    from triton_rerank_export.repository import listing

    rows, faults = listing.rows(options.model_repository)
    _print_table([listing.HEADER, *rows])
    if faults:
        raise ExportError("\n  ".join(faults))
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
