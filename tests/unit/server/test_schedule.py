"""The order of micro-batches, a pure module: every row once, bounds kept, least work first, and nobody starves."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_rerank_server.backends.encoder.schedule import AGEING, Schedule, ScheduleFullError, Waiting

BUDGET, COST = 512, 60
LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=12)


def lengths_of(lists: dict[Waiting, list[int]], batch: list[tuple[Waiting, int]]) -> list[int]:
    return [lists[waiting][row] for waiting, row in batch]


@given(st.lists(LENGTHS, min_size=1, max_size=8), st.booleans(), st.data())
def test_every_row_is_taken_once_within_the_bounds_of_a_batch(
    lists: list[list[int]], flat: bool, data: st.DataObject
) -> None:
    schedule = Schedule(BUDGET, COST, flat=flat)
    there: dict[Waiting, list[int]] = {}
    taken: list[tuple[Waiting, int]] = []
    coming = list(lists)
    while coming or len(schedule):
        if coming and (not len(schedule) or data.draw(st.booleans())):
            lengths = coming.pop()
            there[schedule.add(lengths)] = lengths
            continue
        batch = schedule.take()
        tokens = lengths_of(there, batch)
        assert batch
        padded = sum(tokens) if flat else max(tokens) * len(tokens)
        assert len(batch) == 1 or padded <= BUDGET
        assert padded - sum(tokens) <= COST
        taken += batch
    assert sorted((id(waiting), row) for waiting, row in taken) == sorted(
        (id(waiting), row) for waiting, lengths in there.items() for row in range(len(lengths))
    )
    assert schedule.tokens == 0


@given(st.lists(LENGTHS, min_size=2, max_size=8))
def test_the_next_batch_begins_with_the_least_work_of_those_that_came_at_once(lists: list[list[int]]) -> None:
    schedule = Schedule(BUDGET, COST)
    there = {schedule.add(lengths): lengths for lengths in lists}
    (first, row), *_ = schedule.take()
    assert sum(there[first]) == min(map(sum, lists))
    assert there[first][row] == min(there[first])


@given(st.lists(st.integers(1, 200), min_size=20, max_size=60), st.integers(1, 40))
def test_a_long_request_waits_for_no_more_than_its_own_work_of_later_ones(flood: list[int], rows: int) -> None:
    """A flood of short requests, one for every batch: what is taken of them before the long one ends is bounded."""
    schedule = Schedule(BUDGET, COST)
    ours = schedule.add([100] * rows)
    arrivals = itertools.cycle(flood)
    there: dict[Waiting, list[int]] = {}
    others = 0
    while ours.rows:
        lengths = [next(arrivals)]
        there[schedule.add(lengths)] = lengths
        others += sum(there[waiting][row] for waiting, row in schedule.take() if waiting is not ours)
        assert others <= AGEING * 100 * rows + 2 * max(flood) + rows * BUDGET


def test_whatever_comes_after_its_ageing_stands_behind_a_long_request() -> None:
    schedule = Schedule(BUDGET, 0)
    long = schedule.add([500, 500])
    for _ in range(int(AGEING * 100) + 10):  # short ones of another length, so that no batch holds both
        schedule.add([10])
        if schedule.take()[0][0] is long:
            break
    else:
        pytest.fail("the long request starves")


def test_without_ageing_it_would_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same flood under plain least work first: the test above can fail."""
    monkeypatch.setattr("triton_rerank_server.backends.encoder.schedule.AGEING", 1e9)
    schedule = Schedule(BUDGET, 0)
    long = schedule.add([500, 500])
    for _ in range(500):
        schedule.add([10])
        assert schedule.take()[0][0] is not long


def test_rows_of_others_fill_a_batch_up_as_far_as_they_cost_no_padding() -> None:
    schedule = Schedule(BUDGET, COST)
    first, second, third = schedule.add([64]), schedule.add([64, 60, 1]), schedule.add([300])
    assert schedule.take() == [(first, 0), (second, 0), (second, 1)]
    assert schedule.take() == [(second, 2)]
    assert schedule.take() == [(third, 0)]
    assert schedule.take() == []


def test_without_padding_rows_of_all_others_fill_a_batch_up_in_their_turn() -> None:
    schedule = Schedule(BUDGET, COST, flat=True)
    first, second, third = schedule.add([64]), schedule.add([400, 60]), schedule.add([300, 300])
    assert schedule.take() == [(first, 0), (second, 1), (third, 0)]
    assert schedule.take() == [(second, 0)]
    assert schedule.take() == [(third, 1)]


def test_a_bound_refuses_but_a_lone_request_of_any_size_is_taken() -> None:
    schedule = Schedule(BUDGET, COST, most_tokens=100)
    schedule.add([300])
    with pytest.raises(ScheduleFullError, match="1 tokens came and 300 wait; at most 100 may"):
        schedule.add([1])
    schedule.take()
    schedule.add([60])
    schedule.add([40])


def test_a_number_of_requests_is_a_bound_too_but_not_for_those_that_come_with_the_first() -> None:
    schedule = Schedule(BUDGET, COST, most_tokens=100, most_requests=2)
    for _ in range(3):
        schedule.add([60], bounded=False)
    with pytest.raises(ScheduleFullError, match="3 requests wait; at most 2 may"):
        schedule.add([1])


def test_what_is_dropped_is_not_taken_and_frees_its_tokens() -> None:
    schedule = Schedule(BUDGET, 0)
    gone, stays = schedule.add([200, 400]), schedule.add([700])
    schedule.take()
    assert gone.begun
    schedule.drop(gone)
    assert schedule.tokens == 700
    assert schedule.take() == [(stays, 0)]
    schedule.drop(gone)
    assert schedule.tokens == 0
