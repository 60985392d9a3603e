"""Kendall's tau agrees with scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from triton_rerank_bench.metrics import kendall_tau


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
