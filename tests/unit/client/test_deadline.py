from __future__ import annotations

import pytest

from triton_rerank import DeadlineExceededError
from triton_rerank.core.deadline import Deadline


def test_what_is_left_shrinks_with_the_clock() -> None:
    now = [100.0]
    deadline = Deadline(5.0, clock=lambda: now[0])
    now[0] = 103.0
    assert deadline.left_s(doing="x") == pytest.approx(2.0)
    assert deadline.elapsed_s() == pytest.approx(3.0)


def test_a_passed_deadline_says_what_the_time_was_wanted_for() -> None:
    now = [0.0]
    deadline = Deadline(5.0, clock=lambda: now[0])
    now[0] = 5.0
    with pytest.raises(DeadlineExceededError, match="timeout_s of 5 s passed before 3 pairs were sent") as error:
        deadline.left_s(doing="3 pairs were sent")
    assert isinstance(error.value, TimeoutError)
