"""``triton-rerank-export export``, ``set``, ``list`` and ``models``."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from triton_rerank_export.arguments import add_options, chosen
from triton_rerank_export.options import LEAST_VERSIONS, MOST_VERSIONS, ExportOptions
from triton_rerank_export.repository.settings import SETTINGS, Settings, check_bounds
from triton_rerank_export.repository.triton_config import ServedModel

if TYPE_CHECKING:
    from triton_rerank_export.pipeline import ExportResult

_OF_ITS_GRAPH = [field.name for field in fields(ExportOptions) if field.name not in SETTINGS]


def register(commands: Any) -> None:
    """Add the four commands to argparse's subparsers."""
    export = commands.add_parser("export", help="checkpoint → model repository")
    export.add_argument(
        "--model", required=True, help="a known name, a Hugging Face id (org/name@revision), or a folder"
    )
    export.add_argument("--model-repository", type=Path, required=True)
    add_options(export, ExportOptions, _OF_ITS_GRAPH)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    export.set_defaults(run=_export, timing_cache=cache / "triton-rerank" / "tensorrt-timing.cache")
    _add_settings(export)
    changed = commands.add_parser("set", help="serve a model that is there with other settings, as a new version")
    changed.add_argument("--model", required=True, help="public name")
    changed.add_argument("--model-repository", type=Path, required=True)
    changed.add_argument(
        "--from", type=Path, dest="source", metavar="REPOSITORY", help="take its model, as it is there"
    )
    _add_settings(changed)
    changed.add_argument(
        "--replace", action="store_true", help="in place of all versions that are there, and of any precision"
    )
    add_options(changed, ExportOptions, ["keep_versions"])
    changed.set_defaults(run=_set)
    listed = commands.add_parser("list", help="what is in the repository: versions, precision, licence")
    listed.add_argument("--model-repository", type=Path, required=True)
    listed.set_defaults(run=_list)
    models = commands.add_parser("models", help="list the models that have a name here")
    models.set_defaults(run=_models)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "settings", "what `make perf` tunes; what is not given is as in the version that is there"
    )
    add_options(group, Settings, SETTINGS, shown=ServedModel)


def _export(options: argparse.Namespace) -> int:
    from triton_rerank_export.pipeline import export_model
    from triton_rerank_export.repository.staging import told

    wanted = chosen(ExportOptions, options)
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

    settings = chosen(Settings, options)
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
    from triton_rerank_export.repository.check import HEADER, rows

    found, faults = rows(options.model_repository)
    _print_table([HEADER, *found])
    if faults:
        raise ExportError("\n  ".join(faults))
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
