from __future__ import annotations

import threading

import pytest

from triton_rerank.hosted.retry import RetryBudget, backoff_s, retry_after_s

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def test_the_bound_of_the_wait_doubles_up_to_five_seconds() -> None:
    bounds = [backoff_s(attempt, draw=lambda: 1.0) for attempt in (0, 1, 2, 5, 6, 10_000)]
    assert bounds == pytest.approx([0.1, 0.2, 0.4, 3.2, 5.0, 5.0])


def test_the_wait_is_anything_from_zero_to_its_bound() -> None:
    assert backoff_s(3, draw=lambda: 0.0) == 0.0
    waits = [backoff_s(3) for _ in range(200)]
    assert all(0 <= wait < 0.8 for wait in waits)
    assert max(waits) - min(waits) > 0.4


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3.0),
        (" 0.25 ", 0.25),
        ("0", 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:50", 30.0),
        ("Tue, 14 Nov 2023 23:13:50 +0100", 30.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("nan", None),
        ("1e9", None),
        ("9" * 400, None),
        ("Tue, 99 Foo 2023 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, now=NOW) == expected


def test_a_budget_pays_for_half_of_its_tokens_without_a_success() -> None:
    budget = RetryBudget(10)
    assert [budget.spend() for _ in range(7)] == [True] * 5 + [False] * 2


def test_a_spent_budget_earns_one_retry_by_enough_successes() -> None:
    budget = RetryBudget(10, earned=0.125)  # an exact binary fraction
    while budget.spend():
        pass
    for _ in range(8):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]


def test_savings_are_bounded() -> None:
    budget = RetryBudget(10)
    for _ in range(1000):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == 5


def test_while_everything_fails_retries_stay_a_handful_however_many_threads_ask() -> None:
    budget = RetryBudget(10)
    paid: list[bool] = []
    threads = [threading.Thread(target=lambda: paid.extend(budget.spend() for _ in range(500))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paid) == 4000
    assert sum(paid) == 5
