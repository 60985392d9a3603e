"""The thread that works for the tokenizer step, and what waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from triton_rerank_server.backends.tokenizer.handover import MOST_WAITING, Handover


@dataclass
class Request:
    rows: int


class Work:
    """Works on requests when it may."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        self.begun = threading.Event()
        self.may = threading.Event()

    def __call__(self, requests: Sequence[Request]) -> None:
        self.begun.set()
        assert self.may.wait(timeout=30)
        self.done.append([request.rows for request in requests])


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def handover(work: Work) -> Iterator[Handover[Request]]:
    """It works on a first request, and takes no other yet."""
    handover = Handover(work, most_rows=10)
    handover.put([Request(1)])
    assert work.begun.wait(timeout=30)
    yield handover
    work.may.set()
    handover.close()


def test_what_waits_is_worked_on_together_up_to_the_bound_and_in_order(handover: Handover[Request], work: Work) -> None:
    for rows in ([3], [2, 4], [2], [11]):
        handover.put([Request(n) for n in rows])
    work.may.set()
    handover.close()
    assert work.done == [[1], [3, 2, 4], [2], [11]]


def test_an_execution_waits_where_many_wait_already(handover: Handover[Request], work: Work) -> None:
    for _ in range(MOST_WAITING):
        handover.put([Request(10)])
    more = threading.Thread(target=handover.put, args=([Request(7)],))
    more.start()
    more.join(timeout=0.2)
    assert more.is_alive()
    work.may.set()
    more.join(timeout=30)
    assert not more.is_alive()
    handover.close()
    assert work.done == [[1], *[[10]] * MOST_WAITING, [7]]


def test_the_end_waits_for_what_waits(handover: Handover[Request], work: Work) -> None:
    handover.put([Request(5)])
    end = threading.Thread(target=handover.close)
    end.start()
    end.join(timeout=0.2)
    assert end.is_alive() and not work.done
    work.may.set()
    end.join(timeout=30)
    assert work.done == [[1], [5]]
