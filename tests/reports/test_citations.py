"""Every test here says which public report it stands for, and no report is tested twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.reports import Cited, read_reports

TESTS = Path(__file__).parents[1]
HERE = [cited for cited in read_reports(Path(__file__).parent) if not cited.place.startswith(Path(__file__).name)]


@pytest.mark.parametrize("cited", HERE, ids=lambda cited: cited.place)
def test_a_docstring_begins_with_the_reports_number(cited: Cited) -> None:
    assert cited.well_formed, f"{cited.place}: its docstring must begin 'owner/repository#number: …', or 'own: …'"


def test_no_report_is_tested_twice() -> None:
    counts = Counter(report for cited in read_reports(TESTS) for report in cited.reports)
    assert counts
    assert not [report for report, times in counts.items() if times > 1]


@pytest.mark.parametrize(
    ("docstring", "well_formed"),
    [
        ("acme/x.y-z#12: it failed.", True),
        ("acme/x#12, acme/y#3: it failed.", True),
        ("acme/x#12,\nacme/y#3:\nit failed.", True),
        ("own: it failed.", True),
        ("It failed.", False),
        ("x#12: it failed.", False),
        ("acme/x#0: it failed.", False),
        ("acme/x#12 it failed.", False),
        ("acme/x#12,acme/y#3: it failed.", False),
        ("acme/x#12:", False),
        ("", False),
    ],
)
def test_what_a_well_formed_citation_is(tmp_path: Path, docstring: str, well_formed: bool) -> None:
    (tmp_path / "test_x.py").write_text(f"def test_y():\n    {docstring!r}\n")
    (cited,) = read_reports(tmp_path)
    assert cited.well_formed == well_formed
