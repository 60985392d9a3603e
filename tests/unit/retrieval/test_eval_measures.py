"""Figures agree with trec_eval's own and with formulas by hand; differences are told with how sure they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from triton_rerank import InvalidRequestError
from triton_rerank_retrieval.eval.measures import MEASURES, check_measures, corrected, difference, evaluate

TREC = {"nDCG@10": "ndcg_cut_10", "AP": "map", "R@100": "recall_100", "P@10": "P_10", "Success@10": "success_10"}
IDS = [f"d{number}" for number in range(20)]


def random_judgements(seed: int) -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
    rng = np.random.default_rng(seed)
    queries = [f"q{number}" for number in range(9)]
    qrels = {query: {id: int(rng.integers(0, 4)) for id in rng.choice(IDS, 6, replace=False)} for query in queries}
    for judged in qrels.values():
        judged[next(iter(judged))] = 1
    run = {query: list(rng.choice(IDS, rng.integers(1, 20), replace=False)) for query in queries[1:]}
    return qrels, run


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_pytrec_eval_on_the_same_runs(seed: int) -> None:
    qrels, run = random_judgements(seed)
    ours = evaluate(qrels, run)
    scored = {query: {id: 1.0 / rank for rank, id in enumerate(found, 1)} for query, found in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(TREC.values())).evaluate(scored)
    for name, trec in TREC.items():
        expected = {query: theirs[query][trec] if query in theirs else 0.0 for query in qrels}
        assert ours[name] == pytest.approx(expected, abs=1e-6)


@given(st.permutations(IDS[:8]), st.dictionaries(st.sampled_from(IDS[:10]), st.integers(0, 3), min_size=1))
def test_ndcg_and_reciprocal_rank_are_their_formulas(found: list[str], judged: dict[str, int]) -> None:
    values = evaluate({"q": judged}, {"q": found})
    gains = [judged.get(id, 0) for id in found]
    best = sorted(judged.values(), reverse=True)
    ideal = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(best[:10], 1))
    dcg = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
    assert values["nDCG@10"]["q"] == pytest.approx(dcg / ideal if ideal else 0.0, abs=1e-9)
    first = next((rank for rank, gain in enumerate(gains, 1) if gain), None)
    assert values["RR@10"]["q"] == pytest.approx(1 / first if first else 0.0)


def test_a_query_that_the_run_lacks_counts_as_zero() -> None:
    assert evaluate({"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": ["a"]})["AP"] == {"q1": 1.0, "q2": 0.0}


def test_a_measure_that_is_not_known_is_refused() -> None:
    assert check_measures(MEASURES) == MEASURES
    for wrong in ("accuracy", "nDCG@@10", ""):
        with pytest.raises(InvalidRequestError, match="none that ir-measures knows"):
            check_measures((wrong,))


def test_a_difference_is_paired_and_of_one_seed() -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(40)
    first = {str(place): float(value) for place, value in enumerate(hard + 0.05 + 0.01 * rng.random(40))}
    second = {str(place): float(value) for place, value in enumerate(hard)}
    found = difference(first, second)
    assert found.low > 0.05
    assert found == difference(first, second)
    expected = stats.ttest_rel(list(first.values()), list(second.values())).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-6)


def test_equal_systems_do_not_differ() -> None:
    same = {"a": 0.3, "b": 0.9}
    found = difference(same, same)
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_many_comparisons_are_corrected_as_holm_wrote() -> None:
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([0.5, 0.9]) == [1.0, 1.0]
    assert corrected([]) == []
