"""Rounds of turns: who runs when, what is counted, what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest

from triton_rerank_bench.compare.race import WARM_UP_ROUNDS, Rounds, added_ms, kendall_tau, ratio, run_rounds, timing
from triton_rerank_bench.errors import PeerError
from triton_rerank_bench.workloads import TokenStatistics, Workload

TOKENS = TokenStatistics(pairs=2, total=30, mean=15.0, median=15.0, longest=20, tokens_per_word=1.1)
PAIR = Workload("pair", "q", ["a", "b"], calls=1)


class Clock:
    """Time passes only while someone works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """Takes its next number of seconds at each call."""

    def __init__(self, name: str, clock: Clock, seconds: Callable[[int], float]) -> None:
        self.name = name
        self.calls = 0
        self._clock = clock
        self._seconds = seconds

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        self._clock.now += self._seconds(self.calls)
        self.calls += 1
        return [float(len(document)) for document in documents]


def run(
    workers: Sequence[Worker], clock: Clock, workload: Workload = PAIR, *, seed: int = 1
) -> tuple[Rounds, list[str]]:
    seen: list[str] = []

    def told(doing: str, left_s: float | None = None) -> None:
        seen.append(doing.removeprefix(f"{workload.name}: "))

    rounds = run_rounds(
        workers, [workload], n_rounds=5, seed=seed, on_call=told, during=nullcontext(), clock=clock, pause_s=0.0
    )
    return rounds, seen


def test_warm_up_rounds_are_not_counted() -> None:
    clock = Clock()
    worker = Worker("a", clock, lambda call: 100.0 if call < WARM_UP_ROUNDS else 1.0)
    rounds, seen = run([worker], clock)
    assert rounds.seconds["pair"]["a"] == [1.0] * 5
    assert len(seen) == WARM_UP_ROUNDS + 5 == worker.calls


def test_every_round_has_one_turn_of_each_contestant_in_a_seeded_order() -> None:
    clock = Clock()
    names = ["a", "b", "c"]
    orders: dict[int, list[tuple[str, ...]]] = {}
    for seed in (1, 1, 2):
        _, seen = run([Worker(name, clock, lambda _: 1.0) for name in names], clock, seed=seed)
        rounds = [tuple(seen[i : i + 3]) for i in range(0, len(seen), 3)]
        assert all(sorted(turn) == names for turn in rounds)
        assert len(set(rounds)) > 1
        assert orders.setdefault(seed, rounds) == rounds
    assert orders[1] != orders[2]


def test_short_calls_are_repeated_and_divided() -> None:
    clock = Clock()
    worker = Worker("a", clock, lambda _: 0.25)
    rounds, _ = run([worker], clock, Workload("short", "q", ["a"], calls=4))
    assert rounds.seconds["short"]["a"] == [0.25] * 5
    assert worker.calls == 4 * (WARM_UP_ROUNDS + 5)


def test_medians_rates_and_spread_are_those_of_the_rounds() -> None:
    found = timing("a", [3.0, 1.0, 2.0], TOKENS)
    assert (found.median_s, found.min_s, found.max_s) == (2.0, 1.0, 3.0)
    assert (found.pairs_per_s, found.tokens_per_s) == (1.0, 15.0)


def test_ratios_are_paired_within_rounds() -> None:
    # A slow round slows both: unpaired, the spread would be 0.25 to 4.
    seconds = {"a": [2.0, 8.0, 2.2], "b": [1.0, 4.0, 1.0]}
    found = ratio("a", "b", seconds)
    assert (found.median, found.min, found.max) == pytest.approx((2.0, 2.0, 2.2))
    assert added_ms("a", "b", seconds) == pytest.approx(1200.0)


def test_who_gives_up_has_no_more_turns_and_the_others_go_on() -> None:
    clock = Clock()

    def give_up(call: int) -> float:
        if call == 3:
            raise PeerError("its process ended")
        return 1.0

    doomed, other = Worker("doomed", clock, give_up), Worker("other", clock, lambda _: 1.0)
    rounds, seen = run([doomed, other], clock)
    assert rounds.failed == {"doomed": "its process ended"}
    assert seen.count("doomed") == 4
    assert rounds.complete("pair") == 5
    assert rounds.seconds == {"pair": {"other": [1.0] * 5}}


def test_an_interrupted_round_is_left_out() -> None:
    rounds = Rounds({"pair": {"a": [1.0, 2.0], "b": [3.0]}})
    assert rounds.complete("pair") == 1
    assert rounds.seconds == {"pair": {"a": [1.0], "b": [3.0]}}
    assert Rounds().complete("pair") == 0


def test_orders_that_are_reversed_are_told() -> None:
    assert kendall_tau([1.0, 2.0], [0.1, 0.7]) == pytest.approx(1.0)
    assert kendall_tau([1.0, 2.0], [2.0, 1.0]) == pytest.approx(-1.0)
    assert kendall_tau([1.0], [2.0]) == 1.0


def test_a_constant_list_has_no_order_to_agree_with() -> None:
    assert kendall_tau([1.0, 1.0], [1.0, 2.0]) == 0.0
