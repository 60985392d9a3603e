"""Verdicts of the speed smoke test, on contestants whose speeds are known; `tests/perf` runs the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import speed_smoke as smoke
from support.speed_smoke import OVERHEAD, in_order, measure, uneven

from triton_rerank_bench.compare.contestants import IN_PROCESS, SERVED, InProcess
from triton_rerank_bench.compare.race import run_rounds
from triton_rerank_bench.machine import Machine


class Known(InProcess):
    """Takes known seconds, one call after the other, by a clock that only it moves; has no model."""

    now_s = 0.0

    def __init__(self, name: str, *seconds: float) -> None:
        self.name = name
        self.calls = 0
        self._seconds = seconds

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        Known.now_s += self._seconds[min(self.calls, len(self._seconds) - 1)]
        self.calls += 1
        return [float(place) for place, _ in enumerate(documents)]

    def token_counts(self, query: str, documents: Sequence[str]) -> list[int]:
        return [1 for _ in documents]


@pytest.fixture(autouse=True)
def _known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "run_rounds", partial(run_rounds, clock=lambda: Known.now_s, pause_s=0.0))


def test_a_ratio_is_held_against_its_bound() -> None:
    contestants = [Known(SERVED, 0.044), Known(IN_PROCESS, 0.04)]
    (verdict,) = measure(contestants, [OVERHEAD], n_rounds=3, seed=1)
    assert verdict.passed
    assert verdict.ratio.median == pytest.approx(1.1)
    assert str(verdict).startswith("served / in process: at most 1.4, measured 1.")


def test_a_broken_bound_stays_broken_however_often_it_is_measured() -> None:
    slow = Known(SERVED, 0.04)
    (verdict,) = measure([slow, Known(IN_PROCESS, 0.02)], [OVERHEAD], n_rounds=1, seed=1, attempts=3)
    assert not verdict.passed
    assert slow.calls == 3 * (2 + 1)


def test_a_slow_moment_of_the_machine_is_measured_again() -> None:
    disturbed = Known(SERVED, *[0.08] * 3, 0.02)
    (verdict,) = measure([disturbed, Known(IN_PROCESS, 0.02)], [OVERHEAD], n_rounds=1, seed=1, attempts=3)
    assert verdict.passed
    assert disturbed.calls == 2 * (2 + 1)  # and no longer than need be


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_in_order_hold_each_row_once_and_stay_in_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(in_order(np.array(lengths, np.intp), budget))
    rows = list(range(len(lengths)))
    assert [row for batch in batches for row in rows[batch]] == rows
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        padded = max(lengths[batch]) * len(lengths[batch])
        assert padded <= budget or len(lengths[batch]) == 1
        if following is not None:  # one more would not have gone in
            longer = lengths[batch.start : batch.stop + 1]
            assert max(longer) * len(longer) > budget


def test_lists_are_uneven_and_the_same_for_a_seed() -> None:
    words = sorted(len(document.split()) for document in uneven(1).documents)
    assert (len(words), words[smoke.N_SHORT - 1], words[smoke.N_SHORT]) == (100, smoke.SHORT_WORDS, smoke.LONG_WORDS)
    assert uneven(1) == uneven(1) != uneven(2)


@pytest.mark.parametrize(
    ("flags", "why"),
    [(["avx2"], "old has no VNNI"), (["avx2", "avx_vnni"], None), (["avx512f", "avx512_vnni"], None), ([], "no VNNI")],
)
def test_int8_is_compared_only_where_the_processor_is_made_for_it(flags: list[str], why: str | None) -> None:
    told = smoke.no_int8_here(Machine("old", flags, 2, 8.0, "Linux"))
    assert (told is None) if why is None else why in (told or "")
