"""Options of commands are the fields of dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from triton_rerank_export.arguments import add_options, chosen

FIELDS = ("colour", "sure", "n_tries", "rungs", "from_file", "share")


@dataclass(frozen=True)
class Wanted:
    colour: Annotated[Literal["red", "blue"] | None, "of the bike"] = None
    sure: Annotated[bool, "no doubt"] = False
    n_tries: Annotated[int, "before it gives up"] = 0
    rungs: Annotated[tuple[int, ...] | None, "of a ladder"] = None
    from_file: Annotated[Path | None, "to read"] = None
    share: Annotated[float, "of the whole"] = 0.5
    not_an_option: int = 7


class Shown:
    colour, sure, n_tries, rungs, from_file, share = "blue", False, 3, (), "", 0.5


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="try")
    add_options(made, Wanted, FIELDS)
    return made


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", Wanted()),
        ("--colour red --sure --n-tries 4", Wanted(colour="red", sure=True, n_tries=4)),
        ("--rungs 8,16 --from-file a/b --share 0.25", Wanted(rungs=(8, 16), from_file=Path("a/b"), share=0.25)),
        ("--rungs=", Wanted(rungs=())),
    ],
)
def test_what_is_given_is_set_and_the_rest_has_the_fields_defaults(line: str, wanted: Wanted) -> None:
    assert chosen(Wanted, parser().parse_args(line.split())) == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--colour green", "invalid choice: 'green'"),
        ("--n-tries x", "invalid int value: 'x'"),
        ("--rungs 8,y", "'8,y': it must be whole numbers, such as 64,128,512"),
        ("--not-an-option 1", "unrecognized arguments: --not-an-option 1"),
    ],
)
def test_a_value_of_another_type_is_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(line.split())
    assert message in capsys.readouterr().err


def test_help_tells_the_default_that_holds() -> None:
    text = " ".join(parser().format_help().split())
    assert "before it gives up; default 0 " in text
    assert "no doubt --n-tries" in text
    made = argparse.ArgumentParser(prog="try")
    add_options(made, Wanted, FIELDS, shown=Shown)
    text = " ".join(made.format_help().split())
    assert "of the bike; default blue " in text
    assert "before it gives up; default 3 " in text
    assert "of a ladder --from-file" in text
