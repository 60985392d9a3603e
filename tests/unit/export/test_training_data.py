import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.data import (
    Group,
    read_groups,
    sample,
    split,
    training_order,
)

GOOD: dict[str, Any] = {"query": "q", "positives": ["p"], "negatives": ["n", "m"]}


def _file(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def test_groups_are_read_in_order_and_blank_lines_and_other_fields_are_skipped(tmp_path: Path) -> None:
    path = _file(tmp_path, GOOD, b"", GOOD | {"query": "r", "scores": [2, 0.5, -1], "id": 7})
    assert read_groups(path) == [
        Group("q", ("p", "n", "m"), 1, None),
        Group("r", ("p", "n", "m"), 1, (2.0, 0.5, -1.0)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"query": ', "Expecting value"),
        (b'{"query": "\xff"}', "utf-8"),
        (b'{"query": "\\ud800", "positives": ["p"], "negatives": ["n"]}', "surrogates not allowed"),
        ([1], "the line is a JSON list"),
        (GOOD | {"query": "  "}, "'query' must be a text"),
        ({"query": "q", "negatives": ["n"]}, "'positives' must be a list of at least one text"),
        (GOOD | {"negatives": []}, "'negatives' must be a list of at least one text"),
        (GOOD | {"negatives": ["n", ""]}, r"'negatives'[1] must be a text"),
        (GOOD | {"positives": ["p", "n"]}, "both positive and negative ('n')"),
        (GOOD | {"scores": [1, 2]}, "a list of 3 numbers, positives first, found 2"),
        (GOOD | {"scores": [1, 2, True]}, "'scores'[2] must be a finite number"),
        (GOOD | {"scores": [1, 2, float("nan")]}, "'scores'[2] must be a finite number"),
        (GOOD | {"scores": [1, 2, 10**400]}, "too large"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_what_to_do(tmp_path: Path, row: Any, message: str) -> None:
    path = _file(tmp_path, GOOD, row)
    with pytest.raises(ExportError, match=rf"{re.escape(str(path))}:2: .*{re.escape(message)}.*a line looks like"):
        read_groups(path)


def test_a_missing_and_an_empty_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no training data at"):
        read_groups(tmp_path / "nowhere.jsonl")
    with pytest.raises(ExportError, match="holds no training group"):
        read_groups(_file(tmp_path, b"", b"  "))


def _groups(n: int) -> list[Group]:
    return [Group(f"query {i // 2}", ("p", "n"), 1) for i in range(n)]


def test_the_split_keeps_a_query_on_one_side_and_the_order() -> None:
    groups = _groups(40)
    training, held_out = split(groups, fraction=0.25, limit=100, seed=3)
    assert len({g.query for g in held_out}) == 5
    assert not {g.query for g in training} & {g.query for g in held_out}
    assert sorted(training + held_out, key=groups.index) == groups
    assert (training, held_out) == split(groups, fraction=0.25, limit=100, seed=3)
    assert held_out != split(groups, fraction=0.25, limit=100, seed=4)[1]


def test_the_split_obeys_its_limit_holds_out_at_least_one_and_can_be_none() -> None:
    assert len({g.query for g in split(_groups(40), fraction=0.5, limit=3, seed=0)[1]}) == 3
    assert len({g.query for g in split(_groups(40), fraction=0.001, limit=3, seed=0)[1]}) == 1
    assert split(_groups(2), fraction=0, limit=3, seed=0) == (_groups(2), [])
    with pytest.raises(ExportError, match="cannot hold out from 1 query"):
        split(_groups(2), fraction=0.1, limit=3, seed=0)


def test_the_order_is_a_permutation_that_differs_by_epoch_and_seed_only() -> None:
    order = training_order(20, epoch=0, seed=1)
    assert sorted(order) == list(range(20))
    assert order == training_order(20, epoch=0, seed=1)
    assert order != training_order(20, epoch=1, seed=1)
    assert order != training_order(20, epoch=0, seed=2)


def test_a_sample_has_one_positive_first_and_distinct_negatives() -> None:
    group = Group("q", ("p0", "p1", *(f"n{i}" for i in range(20))), 2)
    for seed in range(10):
        drawn = sample(group, size=8, rng=np.random.default_rng(seed))
        assert drawn.documents[0].startswith("p")
        assert len(set(drawn.documents)) == 8
        assert all(document.startswith("n") for document in drawn.documents[1:])
        assert drawn.scores is None


def test_a_sample_follows_the_teachers_ranks() -> None:
    names = tuple(f"n{i}" for i in range(120))  # n0 is the teacher's best negative
    group = Group("q", ("p", *names), 1, (9.0, *(float(-i) for i in range(120))))
    for seed in range(10):
        drawn = sample(group, size=8, rng=np.random.default_rng(seed))
        ranks = [int(document[1:]) for document in drawn.documents[1:]]
        strata = [sum(first <= r < end for r in ranks) for first, end in ((0, 8), (8, 30), (30, 80), (80, 120))]
        assert strata == [3, 2, 1, 1]
        assert drawn.scores == (9.0, *(float(-r) for r in ranks))


def test_a_short_group_gives_all_it_has() -> None:
    drawn = sample(Group("q", ("p", "n", "m"), 1, (1.0, 0.0, -1.0)), size=8, rng=np.random.default_rng(0))
    assert sorted(drawn.documents) == ["m", "n", "p"]
