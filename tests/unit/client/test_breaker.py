from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_rerank.fallback.breaker import Breaker, Front, Permit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker_of(clock: Clock, *, failures: int = 3, cool_down_s: float = 5.0, max_cool_down_s: float = 18.0) -> Breaker:
    return Breaker(failures=failures, cool_down_s=cool_down_s, max_cool_down_s=max_cool_down_s, clock=clock)


def ask(breaker: Breaker) -> Permit:
    permit = breaker.permit()
    assert breaker.admit(permit)
    return permit


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(ask(breaker), "InferenceError")


def is_skipped(breaker: Breaker) -> bool:
    return not breaker.admit(breaker.permit())


def test_it_cools_down_after_so_many_failures_in_a_row(clock: Clock) -> None:
    breaker = breaker_of(clock)
    fail(breaker, 2)
    assert breaker.admits()
    fail(breaker)
    assert is_skipped(breaker)
    assert breaker.cooling_s() == 5.0


def test_an_answer_in_between_starts_the_count_anew(clock: Clock) -> None:
    breaker = breaker_of(clock)
    for _ in range(5):
        fail(breaker, 2)
        ask(breaker)
        breaker.succeeded()
    assert breaker.admits()


def test_one_call_at_a_time_tries_it_when_the_cool_down_is_over(clock: Clock) -> None:
    breaker = breaker_of(clock)
    fail(breaker, 3)
    clock.now += 4.999
    assert is_skipped(breaker)
    clock.now += 0.001
    trial = ask(breaker)
    assert is_skipped(breaker)
    breaker.release(trial)
    ask(breaker)
    assert is_skipped(breaker)
    assert breaker.counters().trials == 2


def test_each_trial_that_fails_doubles_the_cool_down_up_to_the_most(clock: Clock) -> None:
    breaker = breaker_of(clock)
    fail(breaker, 3)
    waits = []
    for _ in range(4):
        waits.append(breaker.cooling_s())
        clock.now += breaker.cooling_s()
        fail(breaker)
    assert waits == [5.0, 10.0, 18.0, 18.0]


def test_an_answer_sets_cool_down_and_count_back(clock: Clock) -> None:
    breaker = breaker_of(clock)
    fail(breaker, 3)
    clock.now += 5.0
    fail(breaker)  # the next one would be 10 s
    clock.now += 10.0
    ask(breaker)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.admits()
    fail(breaker)
    assert breaker.cooling_s() == 5.0


def test_failures_of_calls_that_were_under_way_neither_double_a_cool_down_nor_start_one(clock: Clock) -> None:
    breaker = breaker_of(clock)
    under_way = [ask(breaker) for _ in range(20)]
    fail(breaker, 3)
    for permit in under_way[:10]:
        breaker.failed(permit, "DeadlineExceededError")
    assert breaker.cooling_s() == 5.0
    clock.now += 5.0
    ask(breaker)
    breaker.succeeded()
    for permit in under_way[10:]:
        breaker.failed(permit, "DeadlineExceededError")
    assert breaker.admits()


def test_an_answer_to_any_call_closes_it_and_the_trials_later_failure_is_old(clock: Clock) -> None:
    breaker = breaker_of(clock, failures=1)
    fail(breaker)
    clock.now += 5.0
    trial = ask(breaker)
    breaker.succeeded()  # of a call that was under way
    assert breaker.admits()
    breaker.failed(trial, "InferenceError")
    assert breaker.admits()


def test_a_call_that_is_let_in_anyway_counts_as_a_call_in_place_of_its_skip(clock: Clock) -> None:
    breaker = breaker_of(clock, failures=1)
    fail(breaker)
    permit = breaker.permit()
    assert not breaker.admit(permit)
    assert breaker.admit(permit, anyway=True)
    breaker.failed(permit, "InferenceError")
    assert breaker.cooling_s() == 5.0, "it is no trial"
    counters = breaker.counters()
    assert (counters.calls, counters.failures, counters.skips, counters.trials) == (2, 2, 0, 0)


def test_a_failure_that_tells_nothing_is_counted_only(clock: Clock) -> None:
    breaker = breaker_of(clock, failures=1)
    breaker.failed(ask(breaker), "DeadlineExceededError", tells=False)
    assert breaker.admits()
    assert breaker.counters().failures == 1


def test_the_reason_of_a_skip_says_the_last_error_and_when_it_is_tried(clock: Clock) -> None:
    breaker = breaker_of(clock, failures=1)
    fail(breaker)
    assert breaker.why_skipped() == "it kept failing, last with InferenceError; it is tried again in 5.0 s"
    clock.now += 5.0
    ask(breaker)
    assert breaker.why_skipped().endswith("another call is trying it")


@given(st.lists(st.sampled_from(["begin", "answer", "fail", "cancel", "wait"]), max_size=60))
def test_whatever_happens_it_is_asked_again_and_its_counters_add_up(steps: list[str]) -> None:
    clock = Clock()
    breaker = breaker_of(clock)
    under_way: list[Permit] = []
    begun = skips = cancelled = 0
    for step in steps:
        if step == "begin":
            permit = breaker.permit()
            admitted = breaker.admit(permit)
            begun, skips = begun + admitted, skips + (not admitted)
            under_way += [permit] * admitted
        elif step == "wait":
            clock.now += 2.5
        elif under_way:
            permit = under_way.pop(0)
            if step == "answer":
                breaker.succeeded()
            elif step == "fail":
                breaker.failed(permit, "InferenceError")
            cancelled += step == "cancel"
            breaker.release(permit)
        counters = breaker.counters()
        assert counters.calls == begun
        assert counters.skips == skips
        assert counters.calls == counters.answers + counters.failures + cancelled + len(under_way)
        assert counters.cooling_s <= 18.0
    for permit in under_way:
        breaker.release(permit)
    clock.now += 18.0
    assert breaker.admits()


def test_a_change_is_said_once(clock: Clock) -> None:
    front = Front(settle_s=5.0, clock=clock)
    assert not front.move(0, since=0)
    assert front.move(1, since=0)
    assert not front.move(1, since=1)
    assert front.move(2, since=1), "further down at once"
    clock.now += 5.0
    assert front.move(0, since=2)


def test_a_call_that_began_before_the_last_change_is_no_change(clock: Clock) -> None:
    front = Front(settle_s=5.0, clock=clock)
    began = front.changes
    assert front.move(1, since=began)
    clock.now += 5.0
    assert not front.move(0, since=began)
    assert front.move(0, since=front.changes)


def test_a_return_is_believed_when_the_last_change_has_settled(clock: Clock) -> None:
    front = Front(settle_s=5.0, clock=clock)
    said = 0
    for _ in range(100):  # every other call fails, for 10 s
        said += front.move(1, since=front.changes)
        clock.now += 0.1
        said += front.move(0, since=front.changes)
    assert said == 3  # down, back after 5 s, down
