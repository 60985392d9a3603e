"""Continuous micro-batches with a stand-in engine: who is answered, with what, and what is never computed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from triton_rerank_server.backends.encoder.continuous import CancelledError, Continuous, OverloadError
from triton_rerank_server.backends.encoder.session import EngineError, TensorError

POISON, HEAVY = 13, 17  # ids that no run can score, and that only a run of its own can


class StandIn:
    """An engine whose logit is the sum of a row's ids; each run waits until it is let through."""

    input_names = ("input_ids", "attention_mask")
    micro_batch_tokens, batch_cost_tokens, length_step, is_flat = 64, 1000, 1, False

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.began: threading.Semaphore = threading.Semaphore(0)
        self.rows: list[list[int]] = []

    def run(self, feed: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        self.began.release()
        assert self.gate.acquire(timeout=30)
        ids = feed["input_ids"]
        self.rows.append(ids[:, 0].tolist())
        if (ids == POISON).any():
            raise TensorError("cannot score these tensors")
        if (ids == HEAVY).any() and len(ids) > 1:
            raise EngineError("out of memory")
        logits: npt.NDArray[np.float32] = ids.sum(axis=1, keepdims=True).astype(np.float32)
        return logits


class Told:
    """A ticket that keeps what it is told."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.cancelled = False
        self._told = threading.Event()

    def done(self, logits: npt.NDArray[np.float32]) -> None:
        self.answers.append(logits[:, 0].tolist())
        self._told.set()

    def failed(self, error: Exception) -> None:
        self.answers.append(error)
        self._told.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def answer(self) -> Any:
        assert self._told.wait(30)
        (answer,) = self.answers
        return answer


@pytest.fixture
def engine() -> StandIn:
    return StandIn()


def put(continuous: Continuous, *ids: list[int], timeout_s: float = 60.0) -> Told:
    told = Told()
    array = np.array(ids, dtype=np.int64)
    continuous.put({"input_ids": array, "attention_mask": np.ones_like(array)}, told, timeout_s=timeout_s)
    return told


def busy(continuous: Continuous, engine: StandIn) -> Told:
    """A request that is being computed until the gate opens: what is put meanwhile waits."""
    told = put(continuous, [1, 1])
    assert engine.began.acquire(timeout=30)
    return told


def open_gate(engine: StandIn) -> None:
    engine.gate.release(1000)


def test_all_that_wait_are_computed_together_and_each_gets_its_own_in_its_own_order(engine: StandIn) -> None:
    continuous = Continuous(engine)  # type: ignore[arg-type]
    first = busy(continuous, engine)
    others = [put(continuous, [5, 5, 5], [2, 2, 2]), put(continuous, [9])]
    open_gate(engine)
    assert [told.answer() for told in (first, *others)] == [[2.0], [15.0, 6.0], [9.0]]
    continuous.close()
    assert len(engine.rows) <= 3


def test_a_flat_graph_gets_rows_of_any_lengths_together_and_no_padding() -> None:
    class Flat(StandIn):
        """Its logit is the sum of a row's ids, which follow those of the row before."""

        is_flat = True

        def run(self, feed: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
            self.began.release()
            assert self.gate.acquire(timeout=30)
            assert (feed["attention_mask"] == 1).all()
            rows = np.split(feed["input_ids"], np.cumsum(feed["widths"])[:-1])
            self.rows.append([len(row) for row in rows])
            return np.array([[row.sum()] for row in rows], np.float32)

    engine = Flat()
    continuous = Continuous(engine)  # type: ignore[arg-type]
    first = busy(continuous, engine)
    others = [put(continuous, [5] * 3), put(continuous, [9] * 40), put(continuous, [2], [3])]
    open_gate(engine)
    assert [told.answer() for told in (first, *others)] == [[2.0], [15.0], [360.0], [2.0, 3.0]]
    continuous.close()
    assert [sorted(rows) for rows in engine.rows] == [[2], [1, 1, 3, 40]]


def test_a_bad_row_fails_its_request_only_and_nothing_of_it_is_computed_again(engine: StandIn) -> None:
    continuous = Continuous(engine)  # type: ignore[arg-type]
    busy(continuous, engine)
    good, bad, other = put(continuous, [3, 3]), put(continuous, [POISON, 1], *[[4, 1]] * 200), put(continuous, [6, 6])
    open_gate(engine)
    assert (good.answer(), other.answer()) == ([6.0], [12.0])
    assert isinstance(bad.answer(), TensorError)
    continuous.close()
    assert sum(row.count(4) for row in engine.rows) < 100  # 31 of the batch, and again alone


def test_rows_that_fail_together_only_are_computed_request_by_request(engine: StandIn) -> None:
    continuous = Continuous(engine)  # type: ignore[arg-type]
    busy(continuous, engine)
    told = [put(continuous, [HEAVY, 1]), put(continuous, [2, 2])]
    open_gate(engine)
    assert [each.answer() for each in told] == [[18.0], [4.0]]
    continuous.close()


def test_what_is_cancelled_is_never_computed(engine: StandIn) -> None:
    continuous = Continuous(engine)  # type: ignore[arg-type]
    busy(continuous, engine)
    gone, stays = put(continuous, [7, 7]), put(continuous, [8, 8])
    gone.cancelled = True
    open_gate(engine)
    assert isinstance(gone.answer(), CancelledError)
    assert stays.answer() == [16.0]
    continuous.close()
    assert [row for rows in engine.rows for row in rows] == [1, 8]


def test_what_waited_longer_than_it_may_is_refused_and_never_computed(engine: StandIn) -> None:
    continuous = Continuous(engine)  # type: ignore[arg-type]
    busy(continuous, engine)
    late = put(continuous, [7, 7], timeout_s=0.0)
    open_gate(engine)
    assert isinstance(late.answer(), OverloadError)
    assert "Request timeout expired" in str(late.answer())
    continuous.close()
    assert engine.rows == [[1]]


def test_what_is_too_much_is_refused_at_once(engine: StandIn) -> None:
    continuous = Continuous(engine, most_tokens=3)  # type: ignore[arg-type]
    busy(continuous, engine)
    waits, refused = put(continuous, [7, 7]), put(continuous, [8, 8])
    assert isinstance(refused.answer(), OverloadError)
    assert "Exceeds maximum queue size" in str(refused.answer())
    open_gate(engine)
    assert waits.answer() == [14.0]
    continuous.close()


def test_tensors_that_do_not_fit_are_refused_at_once(engine: StandIn) -> None:
    continuous = Continuous(engine)  # type: ignore[arg-type]
    assert isinstance(put(continuous, [-1, 2]).answer(), TensorError)
    continuous.close()


def test_at_the_end_all_that_waits_is_answered(engine: StandIn) -> None:
    continuous = Continuous(engine)  # type: ignore[arg-type]
    told = [busy(continuous, engine), *(put(continuous, [number, 1]) for number in range(100, 140))]
    open_gate(engine)
    continuous.close()
    assert [each.answers for each in told] == [[[2.0]], *([[number + 1.0]] for number in range(100, 140))]


def test_an_answer_that_cannot_be_given_costs_nobody_else_theirs(
    engine: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    class Gone(Told):
        def done(self, logits: npt.NDArray[np.float32]) -> None:
            raise RuntimeError("the response sender is closed")

    continuous = Continuous(engine)  # type: ignore[arg-type]
    array = np.array([[3, 3]], dtype=np.int64)
    continuous.put({"input_ids": array, "attention_mask": np.ones_like(array)}, Gone())
    assert engine.began.acquire(timeout=30)
    other = put(continuous, [9])
    open_gate(engine)
    assert other.answer() == [9.0]
    continuous.close()
    assert "an answer could not be given" in caplog.text
