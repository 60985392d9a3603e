"""Several lists become one, and nothing that a stage said is lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.candidates import candidate, ids, ranking, rankings

from triton_rerank import ConfigurationError
from triton_rerank_retrieval import Candidate, Fusion, ReciprocalRank, WeightedZ
from triton_rerank_retrieval.candidates import ranked
from triton_rerank_retrieval.fusion import blend

FUSIONS: list[Fusion] = [ReciprocalRank(), WeightedZ()]


def test_reciprocal_rank_is_the_formula_of_its_paper() -> None:
    fused = ReciprocalRank().fuse([ranking("a", ("x", 3.0), ("y", 2.0)), ranking("b", ("y", 9.0))])
    assert ids(fused) == ["y", "x"]
    assert fused[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert fused[1].score == pytest.approx(1 / 61)


def test_z_scores_are_weighted_and_absence_counts_as_the_least() -> None:
    fused = WeightedZ((0.25, 0.75)).fuse(
        [ranking("a", ("x", 3.0), ("y", 2.0), ("z", 1.0)), ranking("b", ("z", 0.9), ("x", 0.1))]
    )
    scores = {one.id: one.score for one in fused}
    step = math.sqrt(1.5)  # of the z-scores 1.22, 0, -1.22 in the first list; 1, -1 in the second
    assert scores == pytest.approx({"x": 0.25 * 2 * step, "y": 0.25 * step, "z": 0.75 * 2})
    assert ids(fused) == ["z", "x", "y"]


def test_a_list_without_scores_counts_by_rank() -> None:
    fused = WeightedZ().fuse([ranking("framework", ("x", None), ("y", None)), ranking("b", ("y", 1.0), ("x", 1.0))])
    assert ids(fused) == ["x", "y"]


def test_each_candidate_keeps_what_every_stage_said() -> None:
    (best, *_) = ReciprocalRank().fuse([ranking("bm25", ("x", 7.5)), ranking("dense", ("y", 0.9), ("x", 0.4))])
    assert [(said.stage, said.rank, said.score) for said in best.said[:2]] == [("bm25", 1, 7.5), ("dense", 2, 0.4)]
    assert best.said[2].stage == "rrf"
    assert best.scale == "rrf"


def test_duplicates_are_joined_by_id_or_by_text() -> None:
    one = ranked([candidate("1", 2.0, text="a  b"), candidate("2", 1.0, text="c")], "one")
    two = ranked([candidate("9", 2.0, text="a b"), candidate("2", 1.0, text="other")], "two")
    assert ids(ReciprocalRank().fuse([one, two])) == ["2", "1", "9"]
    assert ids(ReciprocalRank(join="text").fuse([one, two])) == ["1", "2", "2"]


def test_a_document_that_stands_twice_in_a_list_counts_once() -> None:
    twice = ranked([candidate("x", 2.0), candidate("y", 1.0), candidate("x", 0.5)], "one")
    fused = {one.id: one.score for one in ReciprocalRank().fuse([twice])}
    assert fused == pytest.approx({"x": 1 / 61, "y": 1 / 62})


@pytest.mark.parametrize("fusion", FUSIONS)
@given(st.lists(rankings(), min_size=1, max_size=3))
def test_fusion_loses_and_doubles_nothing_and_sorts(fusion: Fusion, lists: list[list[Candidate[Any]]]) -> None:
    fused = fusion.fuse(lists)
    assert sorted(ids(fused)) == sorted({one.id for ranked_list in lists for one in ranked_list})
    scores = [one.score for one in fused if one.score is not None]
    assert scores == sorted(scores, reverse=True)
    said = {(one.id, note) for ranked_list in lists for one in ranked_list for note in one.said}
    assert said <= {(one.id, note) for one in fused for note in one.said}


@pytest.mark.parametrize("fusion", FUSIONS)
@given(rankings(), st.floats(0.1, 10), st.floats(-5, 5))
def test_one_list_keeps_its_order_whatever_its_scale(
    fusion: Fusion, found: list[Candidate[Any]], factor: float, offset: float
) -> None:
    moved = ranking("moved", *((one.id, factor * (one.score or 0.0) + offset) for one in found))
    kept = [one.score for one in fusion.fuse([moved])]
    if len(set(one.score for one in moved)) == len(moved):
        assert ids(fusion.fuse([moved])) == ids(found)
    assert len(kept) == len(found)


def test_blending_weighs_the_reranker_against_the_first_stage() -> None:
    before = ranking("rrf", ("x", 3.0), ("y", 2.0), ("z", 1.0))
    after = ranking("rerank", ("z", 5.0), ("y", 1.0), ("x", -3.0))
    assert ids(blend(before, after, 1.0)) == ["z", "y", "x"]
    assert ids(blend(before, after, 0.0)) == ["x", "y", "z"]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (1.0, math.nan), (1.0, math.inf)])
def test_wrong_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="weights"):
        ReciprocalRank(weights=weights).fuse([[], []])


def test_nothing_fuses_to_nothing() -> None:
    assert ReciprocalRank().fuse([]) == []
    assert WeightedZ().fuse([[], []]) == []
