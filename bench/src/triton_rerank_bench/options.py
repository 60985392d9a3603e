"""Types and options that commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from triton_rerank_bench.errors import BenchError

DEFAULT_SEED = 1


def add_common(parser: argparse.ArgumentParser, seed_of: str) -> None:
    """Options that nearly every command has."""
    parser.add_argument("--model", help="public model name, if the repository holds more than one")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help=f"{seed_of} (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the report there as JSON")


def add_folder(parser: argparse.ArgumentParser) -> None:
    """``--output`` of a command that writes several files; its report goes nowhere else."""
    parser.add_argument(
        "--output", dest="output_folder", type=Path, default=Path("perf"), metavar="DIR", help="default %(default)s"
    )
    parser.set_defaults(output=None)


def whole(value: str) -> int:
    """A whole number from 0, for argparse."""
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 0")
    return int(value)


def positive(value: str) -> int:
    """A whole number from 1, for argparse."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1")
    return int(value)


def seconds(value: str) -> float:
    """Seconds above 0, for argparse."""
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds above 0")
    return found


def number(flag: str, value: str | None) -> float | None:
    """A number above 0, or None where none is given; raises BenchError where it is another."""
    if value is None:
        return None
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        raise BenchError(f"{flag} {value}: it must be a number above 0")
    return found
