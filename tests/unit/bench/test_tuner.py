"""The search: what it finds, what noise does to it, how it keeps its time, and what an interruption leaves."""

from __future__ import annotations

import random
import re

import pytest
from support.fake_bench import EXPORTED, PAIRS, FakeBench, figures, tuner

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.tune.findings import (
    LEAST_NOISE,
    Row,
    Schedule,
    Score,
    holds,
    machines,
    noise_of,
    operating_point,
)
from triton_rerank_bench.tune.knobs import KNOBS, UNBOUNDED, Setting
from triton_rerank_bench.tune.search import SIZES, Tuner
from triton_rerank_bench.tune.servers import Level
from triton_rerank_server import ServerStartError


def knobs(search: Tuner) -> list[Row]:
    return [row for row in search.tuning.rows if row.stage == "knobs"]


def steady(setting: Setting) -> float:
    """The optimum: two instances with unbounded queues, 300 pairs a second against 200; other values cost a little."""
    speed = 200.0
    speed *= {1: 1.0, 2: 1.25, 4: 0.8}[setting.instances]
    speed *= 1.2 if setting.queue_bounds == UNBOUNDED else 1.0
    speed *= 1.0 if setting.max_batch_size == EXPORTED.max_batch_size else 0.95
    speed *= 1.0 if setting.queue_delay_us == 0 else 0.9
    return speed * (1.0 if setting.repository == "int8" else 0.5)


# --- choice -------------------------------------------------------------------------------------------------------


def test_of_levels_that_hold_the_bound_the_fastest_is_taken() -> None:
    levels = [figures(100, 50, Level(1)), figures(180, 90, Level(2)), figures(260, 200, Level(4))]
    assert operating_point(levels, 100).concurrency == 2
    assert operating_point(levels, None).concurrency == 4


def test_fewer_callers_are_taken_where_more_bring_next_to_nothing() -> None:
    levels = [figures(200, 50, Level(1)), figures(202, 100, Level(2))]
    assert operating_point(levels, None).concurrency == 1


def test_a_level_with_failed_calls_does_not_hold() -> None:
    levels = [figures(100, 50, Level(1)), figures(300, 60, Level(2), errors={"OverloadedError": 1})]
    assert operating_point(levels, 100).concurrency == 1


def test_where_none_holds_the_lowest_p99_comes_closest() -> None:
    levels = [figures(100, 50, Level(1)), figures(180, 90, Level(2)), figures(10, 1, Level(4), errors={"X": 1})]
    assert operating_point(levels, 20).concurrency == 1


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        (Score(True, 110, 50), Score(True, 100, 40), True),
        (Score(True, 104, 50), Score(True, 100, 50), False),  # within noise
        (Score(True, 50, 50), Score(False, 100, 90), True),  # what holds beats what does not
        (Score(False, 200, 90), Score(True, 100, 50), False),
        (Score(False, 50, 80), Score(False, 100, 90), True),  # neither holds: less latency
        (Score(False, 200, 88), Score(False, 100, 90), False),
    ],
)
def test_scores(new: Score, old: Score, better: bool) -> None:
    assert new.beats(old, 0.05) is better


def test_noise_is_three_times_the_middle_difference_of_neighbours() -> None:
    assert noise_of([100, 100, 100]) == LEAST_NOISE
    assert noise_of([]) == noise_of([100.0]) == LEAST_NOISE
    assert noise_of([100, 110, 100, 110]) == pytest.approx(3 * 10 / 105)
    assert noise_of([100, 104, 108, 112]) < 0.13  # a slow drift is little noise


def test_noise_is_what_equal_settings_seldom_exceed() -> None:
    draw = random.Random(1)
    values = [draw.gauss(100, 3) for _ in range(2000)]
    bound = noise_of(values)
    pairs = ((a / ((b + c) / 2), d / ((e + f) / 2)) for a, b, c, d, e, f in zip(*[iter(values)] * 6, strict=False))
    beyond = [new > old * (1 + bound) for new, old in pairs]
    assert 0.02 < sum(beyond) / len(beyond) < 0.09  # one in twenty


@pytest.mark.parametrize(
    ("rate", "capacity", "headroom", "count"),
    [(1000, 250, 0.8, 5), (1001, 250, 0.8, 6), (1, 250, 0.8, 1), (800, 1000, 0.8, 1), (2.4, 1, 0.8, 3)],
)
def test_machines_is_the_rate_over_the_share_of_the_capacity(
    rate: float, capacity: float, headroom: float, count: int
) -> None:
    assert machines(rate, capacity, headroom) == count


# --- search -------------------------------------------------------------------------------------------------------


def test_the_search_finds_the_best_values_and_confirms_them() -> None:
    bench = FakeBench(steady)
    search = tuner(bench, "instances", "queue_bounds", "max_batch_size", "queue_delay_us")
    search.run()
    answer = search.tuning.answer()
    assert answer is not None
    assert answer.setting.changes_from(answer.exported) == {
        "instances": (1, 2),
        "threads": (0, 2),
        "queue_bounds": ("as exported", "none"),
    }
    assert (answer.confirmed, answer.holds, answer.pairs_per_s) == (True, True, 300.0)
    assert search.tuning.ratios == pytest.approx([1.5] * 4)
    assert not search.tuning.not_tried


def test_nothing_is_tried_twice() -> None:
    bench = FakeBench(steady)
    search = tuner(bench, *KNOBS)
    search.run()
    tried = [(row.setting, row.figures.concurrency) for row in knobs(search) if row.figures]
    assert len(set(tried)) == len(tried)
    assert search.tuning.exported not in {setting for setting, _ in tried}


def test_the_exported_setting_is_measured_before_and_after_each_trial() -> None:
    bench = FakeBench(steady)
    search = tuner(bench, "max_batch_size")
    search.run()
    order = ["R" if setting == EXPORTED else "T" for setting, level in bench.measured if level.rate == 0]
    assert re.fullmatch("R+R(TTR)+", "".join(order))  # a trial is two levels
    assert len(search.tuning.repeats) == len({row.setting for row in knobs(search)}) + 2


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_changes_nothing(seed: int) -> None:
    draw = random.Random(seed)
    factors = [draw.gauss(1, 0.03) for _ in range(500)]
    search = tuner(FakeBench(lambda _: 200.0, wobble=lambda number: factors[number]), *KNOBS)
    search.run()
    answer = search.tuning.answer()
    assert answer is not None
    assert answer.setting == EXPORTED


def test_a_machine_that_grows_slower_does_not_hide_a_better_setting() -> None:
    bench = FakeBench(steady, wobble=lambda number: 0.98**number)  # half as fast after 35 measurements
    search = tuner(bench, "max_batch_size", "queue_delay_us", "instances")
    search.run()
    answer = search.tuning.answer()
    assert answer is not None
    assert (answer.setting.instances, answer.confirmed) == (2, True)


def test_a_winner_by_luck_is_not_confirmed() -> None:
    def speed(setting: Setting) -> float:
        lucky = setting != EXPORTED and len(bench.measured) < 40 and setting.max_batch_size == 64
        return 300.0 if lucky and not confirming() else 200.0

    def confirming() -> bool:
        return search.tuning.exported is not None and bool(search.tuning.of("confirmation"))

    bench = FakeBench(speed)
    search = tuner(bench, "max_batch_size")
    search.run()
    answer, best = search.tuning.answer(), search.tuning.best
    assert answer is not None
    assert best is not None
    assert (search.tuning.confirmed, best.max_batch_size) == (False, 64)
    assert (answer.setting, answer.pairs_per_s) == (EXPORTED, 200.0)


def test_a_bound_decides_the_concurrency() -> None:
    def speed(setting: Setting) -> float:
        return 200.0

    bench = FakeBench(speed)  # latency is 500 ms a caller
    search = tuner(bench, p99_ms=1200)
    search.run()
    assert [figures.concurrency for figures in search.tuning.of("exported")] == [1, 2, 4]
    answer = search.tuning.answer()
    assert answer is not None
    assert (answer.holds, answer.concurrency) == (True, 1)  # two callers get no more


def test_where_no_setting_holds_the_bound_the_closest_is_told() -> None:
    bench = FakeBench(steady)
    search = tuner(bench, "instances", p99_ms=100, rate=1000)
    search.run()
    answer = search.tuning.answer()
    assert answer is not None
    assert (answer.holds, answer.setting.instances, answer.p99_ms) == (False, 2, 400.0)


def test_the_faster_repository_is_searched() -> None:
    bench = FakeBench(steady)
    search = tuner(bench, "instances", repositories=("fp32", "int8"))
    search.run()
    assert [setting.repository for setting in search.tuning.swept()] == ["fp32", "int8"]
    assert {row.setting.repository for row in knobs(search)} == {"int8"}
    answer = search.tuning.answer()
    assert answer is not None
    assert answer.exported.repository == "int8"


def test_each_repository_is_called_in_all_sizes() -> None:
    bench = FakeBench(steady)
    search = tuner(bench, repositories=("fp32", "int8"))
    search.run()
    sizes = [(row.setting.repository, row.pairs) for row in search.tuning.rows if row.stage == "sizes"]
    assert sizes == [(name, size) for name in ("fp32", "int8") for size in SIZES]


def test_a_setting_that_does_not_start_is_told_and_the_search_goes_on() -> None:
    bench = FakeBench(
        steady, fail=lambda setting, _: ServerStartError("no\nlog") if setting.max_batch_size == 64 else None
    )
    search = tuner(bench, "max_batch_size", "instances")
    search.run()
    failed = [row for row in knobs(search) if not row.figures]
    assert [(row.why, row.kept) for row in failed] == [("failed: no", False)] * len(failed)
    assert failed
    answer = search.tuning.answer()
    assert answer is not None
    assert answer.setting.instances == 2


def test_an_exported_setting_that_fails_ends_the_run() -> None:
    search = tuner(FakeBench(steady, fail=lambda *_: ServerStartError("no")))
    with pytest.raises(ServerStartError):
        search.run()
    search = tuner(FakeBench(lambda _: 1e-9))
    search._bench.measure = lambda *_: figures(0, 1, errors={"X": 3})  # type: ignore[method-assign]
    with pytest.raises(BenchError, match="int8 as exported: every call failed"):
        search.run()


# --- open loop ----------------------------------------------------------------------------------------------------


def test_the_open_loop_offers_a_share_of_the_capacity() -> None:
    bench = FakeBench(steady)
    tuner(bench).run()
    loops = [level for _, level in bench.measured if not level.concurrency]
    assert [level.rate * PAIRS for level in loops] == pytest.approx([0.8 * 200])


def test_less_is_offered_where_random_arrivals_miss_the_bound() -> None:
    bench = FakeBench(steady)
    measure = bench.measure

    def slow_when_open(setting: Setting, level: Level, *seconds: float) -> object:
        made = measure(setting, level, *seconds)
        return made if level.concurrency else figures(100, 5e3 * level.rate - 4e3, level)

    bench.measure = slow_when_open  # type: ignore[method-assign,assignment]
    search = tuner(bench, p99_ms=2500)  # 1.6 calls a second: 4 s; 1.2: 2 s
    search.run()
    loops = search.tuning.of("open loop")
    assert [(loop.rate or 0) * PAIRS / 200 for loop in loops] == pytest.approx([0.8, 0.6])
    assert [holds(loop, 2500) for loop in loops] == [False, True]


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_s", [60.0, 180.0, 1200.0])
@pytest.mark.parametrize("slow", [1.0, 0.3])
def test_the_budget_is_kept(budget_s: float, slow: float) -> None:
    bench = FakeBench(lambda setting: slow * steady(setting))
    search = tuner(bench, *KNOBS, budget_s=budget_s, repositories=("int8", "fp32"))
    search.run()
    assert bench.now <= budget_s
    assert search.tuning.of("open loop")
    if budget_s == 180.0:
        assert search.tuning.not_tried


def test_a_short_run_tries_the_first_value_of_each_knob() -> None:
    bench = FakeBench(lambda _: 200.0)
    search = tuner(bench, *KNOBS, budget_s=180.0)
    search.run()
    tried = {row.setting: row.knob for row in knobs(search)}
    assert len(tried) >= 4
    assert len(set(tried.values())) == len(tried)


def test_more_time_means_longer_measurements_first() -> None:
    assert Schedule.of(180).level_s == 3.0
    assert Schedule.of(1200) == Schedule.of(1200.0)
    assert Schedule.of(1200).level_s == Schedule.of(36000).level_s == 10.0
    assert Schedule.of(180).rounds < Schedule.of(1200).rounds


@pytest.mark.parametrize("at", [1, 5, 12, 30, 36])
def test_an_interruption_leaves_what_was_measured(at: int) -> None:
    bench = FakeBench(steady, fail=lambda *_: KeyboardInterrupt() if len(bench.measured) == at else None)
    search = tuner(bench, "instances", "queue_bounds", "max_batch_size")
    with pytest.raises(KeyboardInterrupt):
        search.run()
    answer = search.tuning.answer()
    assert answer is not None
    assert answer.pairs_per_s >= 200.0
    assert at - 2 <= len(search.tuning.rows) <= at  # all but the trial that was under way


def test_an_interruption_of_the_sweeps_answers_with_the_best_exported_setting_so_far() -> None:
    def stop(setting: Setting, level: Level) -> BaseException | None:
        return KeyboardInterrupt() if setting.repository == "int8" and level.concurrency > 1 else None

    search = tuner(FakeBench(steady, fail=stop), "instances", repositories=("fp32", "int8", "bf16"))
    with pytest.raises(KeyboardInterrupt):
        search.run()
    answer = search.tuning.answer()
    assert answer is not None
    assert (answer.setting.repository, answer.pairs_per_s) == ("int8", 200.0)  # fp32 was swept first, at half of it


def test_an_interruption_before_the_first_level_leaves_no_answer() -> None:
    search = tuner(FakeBench(steady, fail=lambda *_: KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert search.tuning.answer() is None
