from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from triton_rerank.confidence import ConfidenceBands, Thresholds
from triton_rerank.errors import ConfigurationError

BANDS = ConfidenceBands({"a": Thresholds(high=0.8, medium=0.4), "b": Thresholds(high=5, medium=-2.5)})


@pytest.mark.parametrize(
    ("model", "score", "band"),
    [
        ("a", 1.0, "high"),
        ("a", 0.8, "high"),
        ("a", math.nextafter(0.8, 0), "medium"),
        ("a", 0.4, "medium"),
        ("a", math.nextafter(0.4, 0), "low"),
        ("a", 0.0, "low"),
        ("b", 5.0, "high"),
        ("b", 0.8, "medium"),
        ("b", -3.0, "low"),
        ("a", None, None),
        ("a model that stepped in", 0.9, None),
    ],
)
def test_band(model: str, score: float | None, band: str | None) -> None:
    assert BANDS.band(model, score) == band


@pytest.mark.parametrize(
    ("high", "medium", "message"),
    [
        (0.4, 0.4, "high is 0.4 and medium is 0.4: high must be above medium"),
        (0.1, 0.4, "high is 0.1 and medium is 0.4"),
        (math.nan, 0.4, "high is nan: it must be a finite number"),
        (math.inf, 0.4, "high is inf"),
        (0.4, -math.inf, "medium is -inf"),
        (True, 0.4, "high is True"),
        (0.8, "0.4", "medium is '0.4'"),
        (0.8, None, "medium is None"),
    ],
)
def test_thresholds_that_are_none(high: Any, medium: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Thresholds(high=high, medium=medium)


def test_a_later_change_of_the_callers_mapping_changes_nothing() -> None:
    thresholds = {"a": Thresholds(0.8, 0.4)}
    bands = ConfidenceBands(thresholds)
    thresholds.clear()
    assert bands.band("a", 0.9) == "high"


def test_a_calibration_file(tmp_path: Path) -> None:
    path = tmp_path / "bands.json"
    path.write_text(json.dumps({"a": {"high": 0.8, "medium": 0.4}, "b": {"high": 5, "medium": -2.5}}), "utf-8")
    for where in (path, str(path)):
        bands = ConfidenceBands.from_file(where)
        assert [bands.band("a", 0.8), bands.band("b", -2.6), bands.band("c", 1.0)] == ["high", "low", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON in UTF-8: Expecting value"),
        (b"{'a': 1}", "is not JSON in UTF-8"),
        (b'{"a": "\xff"}', "is not JSON in UTF-8: 'utf-8' codec"),
        (b"[" * 200_000, "is not JSON in UTF-8"),
        (b"[]", r"\[\]: it must be an object of model names"),
        (b"null", "None: it must be an object of model names"),
        (b'{"a": 0.8}', "'a' has 0.8: it must have the keys high and medium, no others"),
        (b'{"a": {"high": 0.8}}', "'a' has {'high': 0.8}: it must have the keys high and medium"),
        (b'{"a": {"high": 0.8, "medium": 0.4, "low": 0}}', "'a' has .*'low': 0.*no others"),
        (b'{"a": {"high": 0.8, "medium": "x"}}', "'a': medium is 'x': it must be a finite number"),
        (b'{"a": {"high": NaN, "medium": 0.4}}', "'a': high is nan"),
        (b'{"a": {"high": 0.8, "medium": null}}', "'a': medium is None"),
        (b'{"a": {"high": true, "medium": 0}}', "'a': high is True"),
        (b'{"a": {"high": 0.4, "medium": 0.8}}', "'a': high is 0.4 and medium is 0.8"),
        (b'{"a": {"high": 1, "medium": 0}, "a": {"high": 2, "medium": 0}}', "the key 'a' stands twice"),
        (b'{"a": {"high": 1, "high": 2, "medium": 0}}', "the key 'high' stands twice"),
        (b'{"a": {"high": 1' + b"0" * 400 + b', "medium": "' + b"x" * 500 + b'"}}', "'a': medium is 'x{70,79}…"),
    ],
)
def test_every_fault_of_a_file_is_named_with_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bands.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"bands.json.*{message}"):
        ConfidenceBands.from_file(path)


@pytest.mark.parametrize(("name", "message"), [("missing.json", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot be read: {message}"):
        ConfidenceBands.from_file(tmp_path / name)
