"""Who goes next, who waits, who is refused: bounds that hold, and keys that do not starve each other."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from triton_rerank_gateway.admission.admission import DrainRate
from triton_rerank_gateway.admission.queueing import NOTHING, Cost, FairQueue, Ticket


def ticket(key: str, pairs: int = 10, *, weight: float = 1.0, priority: int = 0) -> Ticket:
    return Ticket(key, weight, Cost(pairs, pairs * 100), priority)


def queue(flight: int = 20, room: int = 100) -> FairQueue:
    return FairQueue(Cost(flight, flight * 100), Cost(room, room * 100))


def order_of(waiting: FairQueue, first: list[Ticket], n: int) -> list[str]:
    """Keys in the order in which they are let through, one finishing after the other."""
    running, keys = list(first), list[str]()
    while len(keys) < n:
        waiting.finish(running.pop(0))
        taken = waiting.take()
        running += taken
        keys += [each.key for each in taken]
    return keys


def test_what_fits_goes_at_once_and_the_rest_waits_within_its_bound() -> None:
    line = queue(flight=20, room=30)
    for _ in range(2):
        assert line.offer(ticket("a")) == []
        assert len(line.take()) == 1
    assert [line.offer(ticket("a")) for _ in range(4)] == [[], [], [], None]
    assert (line.in_flight.pairs, line.waiting.pairs, line.take()) == (20, 30, [])


def test_a_bound_holds_for_tokens_too() -> None:
    line = FairQueue(Cost(100, 1000), Cost(100, 1000))
    assert line.offer(Ticket("a", 1.0, Cost(1, 900))) == []
    assert len(line.take()) == 1
    assert line.offer(Ticket("a", 1.0, Cost(1, 900))) == []
    assert line.take() == []


def test_a_key_that_floods_does_not_starve_another() -> None:
    line = queue(flight=10, room=1000)
    for _ in range(50):
        line.offer(ticket("flood"))
    first = line.take()
    for _ in range(5):
        line.offer(ticket("calm"))
    keys = order_of(line, first, 10)
    assert Counter(keys) == {"flood": 5, "calm": 5}
    assert keys[0] == "calm"  # it had nothing yet


def test_a_key_that_slept_has_no_credit_to_starve_others_with() -> None:
    line = queue(flight=10, room=1000)
    for _ in range(40):
        line.offer(ticket("busy"))
    first = line.take()
    order_of(line, first, 20)
    for _ in range(20):
        line.offer(ticket("sleeper"))
    line.finish(ticket("busy"))
    running = line.take()
    assert Counter(order_of(line, running, 10))["busy"] >= 4


def test_weight_is_the_share_of_a_busy_gateway() -> None:
    line = queue(flight=10, room=1000)
    for _ in range(30):
        line.offer(ticket("high", weight=1.0))
        line.offer(ticket("low", weight=0.5))
    assert Counter(order_of(line, line.take(), 18)) == {"high": 12, "low": 6}


def test_priority_orders_the_requests_of_one_key() -> None:
    line = queue(flight=10)
    line.offer(ticket("a"))
    line.take()
    late, soon = ticket("a", priority=5), ticket("a", priority=0)
    line.offer(late)
    line.offer(soon)
    line.finish(ticket("a"))
    assert line.take() == [soon]


def test_a_large_request_is_not_passed_for_ever_by_small_ones() -> None:
    line = queue(flight=20)
    small = ticket("a", 10)
    line.offer(small)
    line.take()
    large = ticket("b", 20)
    line.offer(large)
    line.offer(ticket("c", 5))
    assert line.take() == []
    line.finish(small)
    assert line.take() == [large]


def test_in_a_full_room_the_newest_of_the_greediest_leaves() -> None:
    line = queue(flight=10, room=50)
    tickets = [ticket("flood") for _ in range(6)]
    for each in tickets:
        line.offer(each)
        line.take()
    assert line.offer(ticket("flood")) is None
    assert line.offer(ticket("calm")) == [tickets[-1]]
    assert line.offer(ticket("calm")) == [tickets[-2]]
    assert line.offer(ticket("calm")) is None  # it would have as much as the other


def test_nobody_leaves_for_a_request_that_does_not_fit_all_the_same() -> None:
    line = queue(flight=10, room=50)
    for _ in range(6):
        line.offer(ticket("flood"))
        line.take()
    before = line.waiting
    assert line.offer(ticket("calm", 40)) is None
    assert line.waiting == before


requests = st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.sampled_from([0.25, 1.0]), st.integers(0, 2))


@given(st.lists(st.one_of(requests, st.just("finish"), st.just("drop")), max_size=200))
def test_bounds_hold_and_nothing_is_lost_whatever_comes(steps: list[tuple[str, int, float, int] | str]) -> None:
    line = queue(flight=20, room=40)
    running: list[Ticket] = []
    waiting: list[Ticket] = []
    for step in steps:
        if isinstance(step, tuple):
            key, pairs, weight, priority = step
            new = ticket(key, pairs, weight=weight, priority=priority)
            left = line.offer(new)
            if left is not None:
                waiting = [each for each in waiting if each not in left] + [new]
        elif step == "finish" and running:
            line.finish(running.pop(0))
        elif step == "drop" and waiting:
            line.drop(waiting.pop())
        taken = line.take()
        running += taken
        waiting = [each for each in waiting if each not in taken]
        assert line.in_flight.pairs == sum(each.cost.pairs for each in running) <= 20
        assert line.waiting.pairs == sum(each.cost.pairs for each in waiting) <= 40
    while waiting:
        for each in running:
            line.finish(each)
        running = line.take()
        assert running
        waiting = [each for each in waiting if each not in running]
    for each in running:
        line.finish(each)
    assert (line.in_flight, line.waiting) == (NOTHING, NOTHING)


def test_the_drain_rate_is_what_was_finished_of_late() -> None:
    now = [0.0]
    rate = DrainRate(lambda: now[0])
    assert (rate.per_s(), rate.seconds_for(100)) == (0.0, 1)
    for _ in range(20):
        now[0] += 1.0
        rate.finished(50)
    assert 45 <= rate.per_s() <= 55
    assert rate.seconds_for(500) in (10, 11)
    assert rate.seconds_for(10**9) == 60
    now[0] += 60
    assert rate.per_s() == 0.0
