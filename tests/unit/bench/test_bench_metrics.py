"""Metrics: hand-computed values, independent formulas, ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score  # type: ignore[import-untyped]

from triton_rerank_bench.metrics import (
    bootstrap_difference,
    fuse,
    kendall_tau,
    mrr_at_10,
    ndcg_at_10,
    order,
    z_scores,
)


def test_ndcg_of_a_hand_computed_ranking() -> None:
    # Relevant at ranks 2 and 4 of three relevant ones: (1/log2 3 + 1/log2 5) / (1/log2 2 + 1/log2 3 + 1/log2 4)
    expected = (0.63092975 + 0.43067656) / (1.0 + 0.63092975 + 0.5)
    assert ndcg_at_10(["x", "a", "y", "b"], {"a": 1, "b": 1, "c": 1}) == pytest.approx(expected, abs=1e-8)


def test_ndcg_gain_is_linear_in_relevance() -> None:
    expected = (1.0 + 3.0 / math.log2(3)) / (3.0 + 1.0 / math.log2(3))  # an exponential gain would use 7 for 3
    assert ndcg_at_10(["low", "high"], {"high": 3, "low": 1}) == pytest.approx(expected)


def test_ndcg_equals_scikit_learn_on_random_rankings() -> None:
    random = np.random.default_rng(5)
    for _ in range(50):
        relevance = random.integers(0, 3, size=40)
        scores = random.permutation(40).astype(float)
        ranking = [str(i) for i in order(scores)]
        ours = ndcg_at_10(ranking, {str(i): int(r) for i, r in enumerate(relevance) if r > 0})
        assert ours == pytest.approx(ndcg_score([relevance], [scores], k=10))


def test_ndcg_counts_relevant_documents_that_were_never_found() -> None:
    assert ndcg_at_10(["a"], {"a": 1}) == 1.0
    assert ndcg_at_10(["a"], {"a": 1, "b": 1}) < 1.0


def test_ndcg_stops_at_the_tenth_rank() -> None:
    others = [f"x{i}" for i in range(10)]
    assert ndcg_at_10([*others, "a"], {"a": 1}) == 0.0
    assert ndcg_at_10([*others[:9], "a"], {"a": 1}) == pytest.approx(1 / math.log2(11))


def test_ndcg_is_zero_where_nothing_is_relevant() -> None:
    assert ndcg_at_10(["a"], {}) == 0.0


@pytest.mark.parametrize(("rank", "expected"), [(1, 1.0), (2, 0.5), (3, 1 / 3), (10, 0.1), (11, 0.0)])
def test_mrr_is_the_reciprocal_of_the_first_relevant_rank(rank: int, expected: float) -> None:
    ranking = [f"x{i}" for i in range(1, 13)]
    ranking[rank - 1] = "a"
    assert mrr_at_10(ranking, {"a": 1}) == expected


def test_mrr_ignores_relevant_documents_after_the_first() -> None:
    assert mrr_at_10(["x", "a", "b"], {"a": 1, "b": 2}) == 0.5


def test_order_puts_the_best_first_and_keeps_equal_scores_in_place() -> None:
    assert order(np.array([1.0, 3.0, 1.0, 3.0])).tolist() == [1, 3, 0, 2]


def test_z_scores_have_mean_zero_and_deviation_one_in_each_row() -> None:
    scores = z_scores(np.array([[1.0, 2.0, 6.0], [100.0, 300.0, 200.0]]))
    assert scores.mean(axis=1) == pytest.approx([0.0, 0.0])
    assert scores.std(axis=1) == pytest.approx([1.0, 1.0])


def test_z_scores_of_equal_scores_are_zero() -> None:
    assert z_scores(np.full((1, 3), 0.1)) == pytest.approx(np.zeros((1, 3)), abs=1e-12)


def test_fusion_weighs_the_first_system_by_the_weight() -> None:
    first, second = np.array([[0.0, 1.0]]), np.array([[5.0, -5.0]])  # z-scores −1, 1 and 1, −1
    assert fuse(first, second, weight=0.7) == pytest.approx(np.array([[-0.4, 0.4]]))


def test_kendall_tau_of_equal_and_reversed_orders() -> None:
    assert kendall_tau([1.0, 2.0, 3.0], [10.0, 20.0, 21.0]) == pytest.approx(1.0)
    assert kendall_tau([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


def test_kendall_tau_equals_scipy_with_and_without_ties() -> None:
    random = np.random.default_rng(6)
    for top in (4, 1000):
        first, second = random.integers(0, top, size=(2, 30)).astype(float)
        assert kendall_tau(list(first), list(second)) == pytest.approx(kendalltau(first, second).statistic)


def test_kendall_tau_of_a_constant_list_is_zero() -> None:
    assert kendall_tau([1.0, 1.0], [1.0, 2.0]) == 0.0


def test_bootstrap_of_equal_systems_is_exactly_zero() -> None:
    difference = bootstrap_difference([0.1, 0.9], [0.1, 0.9], seed=1)
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_bootstrap_is_paired() -> None:
    # The systems spread widely over queries, but their difference never varies: a paired interval has no width.
    second = [0.0, 0.25, 0.5, 0.75]
    difference = bootstrap_difference([value + 0.125 for value in second], second, seed=1)
    assert (difference.mean, difference.low, difference.high) == (0.125, 0.125, 0.125)


def test_bootstrap_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(7).normal(0.1, 0.3, size=400)
    difference = bootstrap_difference(list(values), [0.0] * 400, seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert difference.mean == pytest.approx(values.mean())
    assert difference.low == pytest.approx(values.mean() - half, abs=0.003)
    assert difference.high == pytest.approx(values.mean() + half, abs=0.003)


def test_bootstrap_of_one_seed_is_always_the_same() -> None:
    first, second = np.random.default_rng(8).random((2, 50)).tolist()
    assert bootstrap_difference(first, second, seed=3) == bootstrap_difference(first, second, seed=3)
    assert bootstrap_difference(first, second, seed=3) != bootstrap_difference(first, second, seed=4)
