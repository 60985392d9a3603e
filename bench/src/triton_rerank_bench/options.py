"""Types and options that commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from triton_rerank_bench import workloads

DEFAULT_SEED = 1


def add_model(parser: argparse.ArgumentParser) -> None:
    """The repository that is served, and which of its models."""
    parser.add_argument("--model-repository", type=Path, required=True, metavar="PATH", help="serve the model in it")
    parser.add_argument("--model", help="public model name, if the repository holds more than one")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """What the served model was made of."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="PyTorch folder it was exported from")


def add_workloads(parser: argparse.ArgumentParser, default: str) -> None:
    """``--workload``, any number of times; ``default`` is a name or "all", and stands in the help."""
    names = list(workloads.BY_NAME)
    told = f"{', '.join(names)}; repeatable (default {default})"
    parser.add_argument("--workload", action="append", choices=names, metavar="NAME", help=told)


def add_check(parser: argparse.ArgumentParser) -> None:
    """``--check``, of a command with targets."""
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that every command has whose report is JSON."""
    _add_seed(parser)
    parser.add_argument("--output", type=Path, help="write the report there as JSON")


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Options of a command that writes several files; its report goes nowhere else."""
    _add_seed(parser)
    parser.add_argument(
        "--output", dest="output_folder", type=Path, default=Path("perf"), metavar="DIR", help="default %(default)s"
    )
    parser.set_defaults(output=None)


def _add_seed(parser: argparse.ArgumentParser) -> None:
    told = "of the texts, and of turns or arrivals (default %(default)s)"
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help=told)


def whole(value: str, least: int = 0) -> int:
    """A whole number from 0, or another bound, for argparse."""
    if not value.isdecimal() or int(value) < least:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from {least}")
    return int(value)


def positive(value: str) -> int:
    """A whole number from 1, for argparse."""
    return whole(value, 1)


def from_zero(value: str) -> float:
    """A number from 0, for argparse."""
    return 0.0 if value.strip() in {"0", "0.0"} else number(value, "from 0")


def number(value: str, bound: str = "above 0") -> float:
    """A number above 0, for argparse."""
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number {bound}")
    return found
