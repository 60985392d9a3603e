from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from support.load import BusyClock

from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, ModelScorer, PairRequest, Scored, Scorer
from triton_rerank.errors import (
    AllScorersFailedError,
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotReadyError,
    OverloadedError,
    RequestTooLargeError,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.fallback.chain import FallbackScorer, FirstStageOrder
from triton_rerank.testing import FakeScorer

REQUEST = PairRequest(b"a cat", (b"a dog barks", b"a cat sleeps"))
GONE = ServerUnavailableError("connection refused")
Ask = Callable[..., Scored]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ask_blocking(scorer: Scorer, *, timeout_s: float = 5.0) -> Scored:
    return run_sync(scorer.score(REQUEST, Call(Deadline(timeout_s), SyncRuntime())))


def ask_awaiting(scorer: Scorer, *, timeout_s: float = 5.0) -> Scored:
    return asyncio.run(scorer.score(REQUEST, Call(Deadline(timeout_s), AsyncRuntime())))


@pytest.fixture(params=[ask_blocking, ask_awaiting], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


@pytest.fixture
def clock() -> Clock:
    return Clock()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "triton_rerank" and r.levelno == logging.WARNING]


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "triton_rerank" and r.levelno == logging.ERROR]


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.001)


# --- who answers ---------------------------------------------------------------------------------------------------


def test_the_first_choice_answers_and_nobody_else_is_asked(ask: Ask) -> None:
    primary, other = FakeScorer(name="primary"), FakeScorer(name="other")
    scored = ask(FallbackScorer([primary, other]))
    assert (scored.served_by, scored.degraded, scored.reason, scored.attempts) == ("primary", False, None, ())
    assert scored.logits is not None
    assert scored.logits.tolist() == [1.0, 2.0]
    assert other.requests == ()


@pytest.mark.parametrize(
    "error",
    [
        ServerUnavailableError,
        DeadlineExceededError,
        OverloadedError,
        ModelNotReadyError,
        InferenceError,
        InvalidResponseError,
    ],
)
def test_an_error_that_falls_back_sends_the_whole_request_on(ask: Ask, error: type[RerankError]) -> None:
    primary = FakeScorer(name="primary", error=error("no\nluck"))
    other = FakeScorer(name="other", model="small")
    scored = ask(FallbackScorer([primary, other]))
    assert (scored.served_by, scored.model, scored.degraded) == ("other", "small", True)
    assert scored.reason == f"primary: {error.__name__}: no luck"
    assert other.requests == primary.requests == (REQUEST,)
    (attempt,) = scored.attempts
    assert (attempt.scorer, attempt.error, attempt.reason) == ("primary", error.__name__, "no luck")
    assert 0 <= attempt.elapsed_s < 1.0


def test_a_request_that_the_first_choice_calls_wrong_is_raised_at_once(ask: Ask) -> None:
    raised, other = InvalidRequestError("no"), FakeScorer(name="other")
    chain = FallbackScorer([FakeScorer(name="primary", error=raised), other])
    with pytest.raises(InvalidRequestError) as caught:
        ask(chain)
    assert caught.value is raised
    assert other.requests == ()


@pytest.mark.parametrize("error", [RequestTooLargeError, ConfigurationError])
def test_a_first_choice_that_refuses_is_an_attempt(
    ask: Ask, error: type[RerankError], caplog: pytest.LogCaptureFixture
) -> None:
    chain = FallbackScorer([FakeScorer(name="primary", error=error("key expired")), FakeScorer(name="other")])
    scored = ask(chain)
    assert (scored.served_by, scored.degraded) == ("other", True)
    assert scored.reason == f"primary: {error.__name__}: key expired"
    assert [(attempt.scorer, attempt.error) for attempt in scored.attempts] == [("primary", error.__name__)]
    assert errors_of(caplog) == [f"fallback: primary refuses, others are asked: {error.__name__}: key expired"]


@pytest.mark.parametrize("error", [InvalidRequestError, RequestTooLargeError, ConfigurationError])
def test_a_fallback_that_refuses_leads_to_the_next(ask: Ask, error: type[RerankError]) -> None:
    scorers = [FakeScorer(name="a", error=GONE), FakeScorer(name="b", error=error("max_length is 512")), FakeScorer()]
    scored = ask(FallbackScorer(scorers))
    assert scored.served_by == "fake"
    assert [attempt.error for attempt in scored.attempts] == ["ServerUnavailableError", error.__name__]
    scored = ask(FallbackScorer(scorers[:2]))
    assert scored.served_by == "first-stage-order"
    with pytest.raises(AllScorersFailedError, match=f"b: {error.__name__}: max_length is 512"):
        ask(FallbackScorer(scorers[:2], fail_closed=True))


def test_what_an_inner_chain_calls_wrong_is_an_attempt_of_the_outer_one(ask: Ask) -> None:
    inner = FallbackScorer([FakeScorer(name="b", error=InvalidRequestError("no"))], name="inner", fail_closed=True)
    assert ask(FallbackScorer([FakeScorer(name="a", error=GONE), inner, FakeScorer(name="c")])).served_by == "c"
    with pytest.raises(InvalidRequestError):
        ask(FallbackScorer([inner, FakeScorer(name="c")]))


def test_a_refusal_is_logged_once_until_it_changes(ask: Ask, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    primary = FakeScorer(name="primary", error=ConfigurationError("expired"))
    chain = FallbackScorer([primary, FakeScorer(name="other")], clock=clock)
    for _ in range(10):
        ask(chain)
    assert len(primary.requests) == 3, "then it is skipped, as any that keeps failing"
    assert len(errors_of(caplog)) == 1
    clock.now, primary.error = 5.0, RequestTooLargeError("2 MB")
    ask(chain)
    assert len(errors_of(caplog)) == 2
    clock.now, primary.error = 10.0, None
    assert not ask(chain).degraded
    primary.error = RequestTooLargeError("2 MB")
    ask(chain)
    assert len(errors_of(caplog)) == 3, "it had answered for some time"


def test_one_that_refuses_every_other_call_is_not_a_line_for_each(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = [RequestTooLargeError("2 MB"), None] * 100
    chain = FallbackScorer([FakeScorer(name="a", outcomes=outcomes), FakeScorer(name="b")], clock=clock)
    for _ in range(200):
        ask_blocking(chain)
        clock.now += 0.01  # 2 s in all
    assert len(errors_of(caplog)) == 1
    assert chain.counters()["a"].skips == 0, "a request that does not fit says nothing of its health"


def test_a_bug_is_not_swallowed(ask: Ask) -> None:
    other = FakeScorer(name="other")
    with pytest.raises(ZeroDivisionError):
        ask(FallbackScorer([FakeScorer(lambda query, document: 1 / 0, name="primary"), other]))
    assert other.requests == ()


def test_if_nobody_answers_the_callers_order_is_the_answer(ask: Ask) -> None:
    chain = FallbackScorer([FakeScorer(name="a", error=GONE), FakeScorer(name="b", error=InferenceError("broken"))])
    scored = ask(chain)
    assert (scored.served_by, scored.model, scored.degraded) == ("first-stage-order", "first-stage-order", True)
    assert scored.logits is None
    assert scored.scores is None
    assert scored.truncated.tolist() == [False, False]
    assert (scored.token_count, scored.requests) == (0, 0)
    assert [attempt.scorer for attempt in scored.attempts] == ["a", "b"]
    assert scored.reason == (
        "a: ServerUnavailableError: connection refused; b: InferenceError: broken; "
        "no model ranked the documents: they keep the caller's order"
    )


def test_a_chain_that_fails_closed_raises_with_every_attempt(ask: Ask) -> None:
    broken = InferenceError("out of memory\n" + "x" * 500)
    scorers = [FakeScorer(name="a", error=GONE), FakeScorer(name="b", error=broken)]
    with pytest.raises(AllScorersFailedError) as caught:
        ask(FallbackScorer(scorers, fail_closed=True))
    assert [(a.scorer, a.error) for a in caught.value.attempts] == [
        ("a", "ServerUnavailableError"),
        ("b", "InferenceError"),
    ]
    told = "no scorer of 'fallback' answered: a: ServerUnavailableError: connection refused; b: InferenceError: out of"
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert len(caught.value.attempts[1].reason) == 200


def test_the_callers_own_first_stage_order_ends_the_chain(ask: Ask) -> None:
    scorers: list[Scorer] = [FakeScorer(name="a", error=GONE), FirstStageOrder("retriever")]
    for fail_closed in (False, True):
        chain = FallbackScorer(scorers, fail_closed=fail_closed)
        scored = ask(chain)
        assert (scored.served_by, scored.model, scored.degraded) == ("retriever", "first-stage-order", True)
        assert list(chain.counters()) == ["a", "retriever"]


def test_a_first_stage_order_alone_is_a_chain_too(ask: Ask) -> None:
    scored = ask(FallbackScorer([FirstStageOrder()]))
    assert (scored.degraded, scored.attempts) == (True, ())


def test_a_chain_may_stand_in_a_chain(ask: Ask) -> None:
    inner = [FakeScorer(name="b", error=OverloadedError("full")), FakeScorer(name="c")]
    chain = FallbackScorer([FakeScorer(name="a", error=GONE), FallbackScorer(inner, name="second site")])
    scored = ask(chain)
    assert scored.served_by == "c"
    assert [attempt.scorer for attempt in scored.attempts] == ["a", "b"]
    assert scored.reason == "a: ServerUnavailableError: connection refused; b: OverloadedError: full"


def test_a_chain_that_fails_closed_falls_back_to_the_next_of_the_outer_chain(ask: Ask) -> None:
    inner = FallbackScorer([FakeScorer(name="a", error=GONE)], fail_closed=True, name="first site")
    scored = ask(FallbackScorer([inner, FakeScorer(name="b")]))
    assert scored.served_by == "b"
    (attempt,) = scored.attempts
    assert (attempt.scorer, attempt.error) == ("first site", "AllScorersFailedError")
    assert "\n" not in attempt.reason


def test_what_the_inner_chain_degraded_stays_degraded(ask: Ask) -> None:
    inner = FallbackScorer([FakeScorer(name="a", error=GONE), FakeScorer(name="b")], name="first site")
    scored = ask(FallbackScorer([inner, FakeScorer(name="c")]))
    assert (scored.served_by, scored.degraded) == ("b", True)
    assert scored.reason == "a: ServerUnavailableError: connection refused"


def test_a_chain_is_no_model() -> None:
    assert not isinstance(FallbackScorer([FakeScorer()]), ModelScorer)


# --- deadlines -----------------------------------------------------------------------------------------------------


def test_a_frozen_scorer_leaves_time_for_the_others(ask: Ask, busy: BusyClock) -> None:
    frozen = [FakeScorer(name="a", delay_s=math.inf), FakeScorer(name="b", delay_s=math.inf)]
    last = FakeScorer(name="c")
    start = time.monotonic()
    scored = ask(FallbackScorer([*frozen, last]), timeout_s=0.8)
    assert busy.own_s(start) < 0.8
    assert scored.served_by == "c"
    assert [attempt.error for attempt in scored.attempts] == ["DeadlineExceededError"] * 2
    assert [attempt.elapsed_s for attempt in scored.attempts] == pytest.approx([0.4, 0.2], abs=0.15)
    assert frozen[0].calls[0].deadline.timeout_s == pytest.approx(0.4, abs=0.05)
    assert last.calls[0].deadline.timeout_s == 0.8, "the last one gets all that is left"


def test_the_share_of_an_attempt_is_the_callers(ask: Ask) -> None:
    primary = FakeScorer(name="a", error=GONE)
    ask(FallbackScorer([primary, FakeScorer(name="b")], attempt_share=0.9), timeout_s=1.0)
    assert primary.calls[0].deadline.timeout_s == pytest.approx(0.9, abs=0.02)


def test_a_scorer_with_none_behind_it_but_the_callers_order_gets_all_the_time(ask: Ask) -> None:
    only = FakeScorer(name="a")
    ask(FallbackScorer([only]), timeout_s=1.0)
    ask(FallbackScorer([only, FirstStageOrder()]), timeout_s=1.0)
    assert [call.deadline.timeout_s for call in only.calls] == [1.0, 1.0]


def test_a_scorer_with_only_skipped_ones_behind_it_gets_all_the_time(ask: Ask) -> None:
    first = FakeScorer(name="a", outcomes=[GONE])
    chain = FallbackScorer([first, FakeScorer(name="b", error=GONE)], failures=2)
    for _ in range(2):
        first.error = GONE
        ask(chain)  # both fail
    first.error = None
    ask(chain, timeout_s=1.0)
    assert first.calls[-1].deadline.timeout_s == 1.0


def test_if_no_time_is_left_the_callers_order_still_answers_inside_the_deadline(ask: Ask, busy: BusyClock) -> None:
    frozen, never = FakeScorer(name="a", delay_s=math.inf), FakeScorer(name="b")
    chain = FallbackScorer([frozen, never], attempt_share=1.0)
    start = time.monotonic()
    scored = ask(chain, timeout_s=0.1)
    assert busy.own_s(start) < 0.3
    assert scored.served_by == "first-stage-order"
    assert [(a.scorer, a.error) for a in scored.attempts] == [
        ("a", "DeadlineExceededError"),
        ("b", "DeadlineExceededError"),
    ]
    assert never.requests == ()
    assert chain.counters()["b"].skips == 1


def test_if_no_time_is_left_a_chain_that_fails_closed_says_so(ask: Ask) -> None:
    with pytest.raises(AllScorersFailedError, match="a: DeadlineExceededError"):
        ask(FallbackScorer([FakeScorer(name="a", delay_s=math.inf)], fail_closed=True), timeout_s=0.05)


def test_a_call_that_came_late_says_nothing_of_a_scorer_by_running_out_of_time() -> None:
    time_now = Clock()
    deadline = Deadline(1.0, clock=time_now)
    time_now.now = 0.95
    chain = FallbackScorer([FakeScorer(name="a", delay_s=math.inf)], failures=1)
    run_sync(chain.score(REQUEST, Call(deadline, SyncRuntime())))
    assert (chain.counters()["a"].failures, chain.counters()["a"].cooling_s) == (1, 0.0)


# --- health --------------------------------------------------------------------------------------------------------


def test_a_scorer_that_keeps_failing_is_skipped_and_tried_again(ask: Ask, clock: Clock) -> None:
    primary = FakeScorer(name="primary", error=GONE)
    chain = FallbackScorer([primary, FakeScorer(name="other")], clock=clock)
    for _ in range(3):
        ask(chain)
    scored = ask(chain)
    assert len(primary.requests) == 3
    (attempt,) = scored.attempts
    assert (attempt.error, attempt.elapsed_s) == ("Skipped", 0.0)
    assert attempt.reason == "it kept failing, last with ServerUnavailableError; it is tried again in 5.0 s"
    assert scored.degraded
    clock.now = 5.0
    ask(chain)  # the trial fails: 10 s
    assert chain.counters()["primary"].trials == 1
    primary.error = None
    clock.now = 14.9
    assert ask(chain).served_by == "other"
    clock.now = 15.0
    assert ask(chain).served_by == "primary"
    assert not ask(chain).degraded


@pytest.mark.parametrize("error", [InvalidRequestError("no"), KeyError("bug")])
def test_an_error_of_the_caller_is_neither_failure_nor_answer(ask: Ask, clock: Clock, error: Exception) -> None:
    outcomes = [GONE, GONE, error, GONE, error, None]
    chain = FallbackScorer([FakeScorer(name="primary", outcomes=outcomes), FakeScorer(name="other")], clock=clock)
    ask(chain)
    ask(chain)
    with pytest.raises(type(error)):
        ask(chain)
    ask(chain)  # the third failure in a row
    assert ask(chain).attempts[0].error == "Skipped"
    clock.now = 5.0
    with pytest.raises(type(error)):
        ask(chain)  # a trial that ends so leaves the place to the next call
    assert ask(chain).served_by == "primary"


def test_if_all_are_being_skipped_the_one_that_is_tried_first_is_asked_anyway(ask: Ask, clock: Clock) -> None:
    a, b = FakeScorer(name="a", error=GONE), FakeScorer(name="b", error=GONE)
    chain = FallbackScorer([a, b], clock=clock, failures=1)
    ask(chain)
    clock.now = 5.0
    ask(chain)  # both trials fail
    clock.now = 15.0
    a.error = InvalidRequestError("no")
    with pytest.raises(InvalidRequestError):
        ask(chain)
    a.error = GONE
    b.error = None
    ask(chain)  # a: 20 s more; b answers
    b.error = GONE
    ask(chain)  # b: 5 s
    asked = len(a.requests), len(b.requests)
    scored = ask(chain)
    assert (len(a.requests), len(b.requests)) == (asked[0], asked[1] + 1)
    assert [(attempt.scorer, attempt.error) for attempt in scored.attempts] == [
        ("a", "Skipped"),
        ("b", "ServerUnavailableError"),
    ]
    assert scored.served_by == "first-stage-order"
    b.error = None
    assert ask(chain).served_by == "b"
    assert chain.counters()["b"].cooling_s == 0.0, "an answer ends a cool-down, also of a call that was no trial"


def test_counters_add_up(ask: Ask, clock: Clock) -> None:
    primary = FakeScorer(name="primary", outcomes=[None, GONE, GONE, GONE], error=GONE)
    chain = FallbackScorer([primary, FakeScorer(name="other")], clock=clock)
    for _ in range(6):
        ask(chain)
    clock.now = 5.0
    ask(chain)
    counters = chain.counters()
    assert list(counters) == ["primary", "other", "first-stage-order"]
    first = counters["primary"]
    assert (first.calls, first.answers, first.failures, first.skips, first.trials) == (5, 1, 4, 2, 1)
    assert first.cooling_s == 10.0
    assert (counters["other"].calls, counters["other"].answers, counters["other"].failures) == (6, 6, 0)
    assert counters["first-stage-order"].calls == 0


# --- threads, cancellation, interrupts -----------------------------------------------------------------------------


class Gate:
    """A scorer whose calls wait in it until it is opened."""

    name = "gate"

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.open = threading.Event()
        self.calls = 0

    async def score(self, request: PairRequest, call: Call) -> Scored:
        self.calls += 1
        self.inside.release()
        assert self.open.wait(10)
        return await FakeScorer(name="gate").score(request, call)

    async def is_ready(self, call: Call) -> bool:
        return True

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


class Switch(Gate):
    """Fails until it is told to be a gate."""

    failing = True

    async def score(self, request: PairRequest, call: Call) -> Scored:
        if self.failing:
            raise GONE
        return await super().score(request, call)


def test_exactly_one_of_sixteen_threads_makes_the_trial(clock: Clock) -> None:
    gate = Switch()
    chain = FallbackScorer([gate, FakeScorer(name="other")], clock=clock)
    for _ in range(3):
        ask_blocking(chain)
    gate.failing = False
    clock.now = 5.0
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(ask_blocking, chain) for _ in range(16)]
        assert gate.inside.acquire(timeout=10)
        wait_until(lambda: sum(future.done() for future in futures) == 15)
        gate.open.set()
        served = [future.result().served_by for future in futures]
    assert (served.count("gate"), served.count("other"), gate.calls) == (1, 15, 1)
    assert chain.counters()["gate"].trials == 1
    assert ask_blocking(chain).served_by == "gate"


def test_under_load_from_threads_a_change_is_logged_once_and_every_call_is_answered(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    primary, other = FakeScorer(name="primary"), FakeScorer(name="other")
    chain = FallbackScorer([primary, other], clock=clock, name="site")

    def load(calls: int) -> list[str]:
        with ThreadPoolExecutor(16) as pool:
            return [scored.served_by for scored in pool.map(lambda _: ask_blocking(chain), range(calls))]

    served = load(200)
    assert warnings_of(caplog) == []
    primary.error = GONE
    served += load(200)
    assert warnings_of(caplog) == [
        "site: other answers in place of primary (primary: ServerUnavailableError: connection refused)"
    ]
    primary.error = None
    clock.now = 5.0
    served += load(200)
    assert warnings_of(caplog)[1:] == ["site: primary answers again, in place of other"]
    counters = chain.counters()
    assert len(served) == 600
    assert served.count("primary") == counters["primary"].answers
    assert served.count("other") == counters["other"].answers == 600 - served.count("primary")
    first = counters["primary"]
    assert first.calls == first.answers + first.failures
    assert first.calls + first.skips == 600
    assert 3 <= first.failures <= 18, "three in a row, and those that were under way"
    assert first.trials == 1


def test_threads_while_the_primary_fails_and_recovers_in_real_time(caplog: pytest.LogCaptureFixture) -> None:
    primary, other = FakeScorer(name="primary"), FakeScorer(name="other")
    chain = FallbackScorer([primary, other], cool_down_s=0.05, max_cool_down_s=0.05)
    over = threading.Event()

    def load() -> list[Scored]:
        answers = []
        while not over.is_set():
            answers.append(ask_blocking(chain))
            time.sleep(0.001)
        return answers

    def logged(changes: int) -> bool:
        return len(warnings_of(caplog)) >= changes

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(load) for _ in range(16)]
        for changes, error in enumerate((GONE, None, GONE, None), 1):
            primary.error = error
            wait_until(partial(logged, changes))
        over.set()
        answers = [scored for future in futures for scored in future.result()]
    assert {scored.served_by for scored in answers} == {"primary", "other"}
    assert all(scored.degraded == (scored.served_by == "other") for scored in answers)
    counters = chain.counters()
    assert counters["primary"].answers + counters["other"].answers == len(answers)
    assert ask_blocking(chain).served_by == "primary"
    messages = warnings_of(caplog)
    assert [message.split()[1] for message in messages] == ["other", "primary", "other", "primary"]


def test_a_scorer_that_fails_every_other_call_is_not_a_line_for_each(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    chain = FallbackScorer([FakeScorer(name="a", outcomes=[GONE, None] * 100), FakeScorer(name="b")], clock=clock)
    for _ in range(200):
        ask_blocking(chain)
        clock.now += 0.01  # 2 s in all
    assert warnings_of(caplog) == ["fallback: b answers in place of a (a: ServerUnavailableError: connection refused)"]


def test_a_call_that_began_before_the_last_change_is_not_logged_as_another(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    class FirstCallWaits(Gate):
        async def score(self, request: PairRequest, call: Call) -> Scored:
            if self.calls == 0:
                return await super().score(request, call)
            return await FakeScorer(name="gate").score(request, call)

    primary, other = FakeScorer(name="primary", outcomes=[GONE, GONE]), FirstCallWaits()
    chain = FallbackScorer([primary, other], clock=clock)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask_blocking, chain)
        assert other.inside.acquire(timeout=10)
        assert ask_blocking(chain).served_by == "gate"
        clock.now = 5.0
        assert ask_blocking(chain).served_by == "primary"
        other.open.set()
        assert late.result().served_by == "gate"
    assert [message.split()[1] for message in warnings_of(caplog)] == ["gate", "primary"]


def test_a_cancelled_trial_leaves_the_place_to_the_next_call(clock: Clock) -> None:
    primary = FakeScorer(name="primary", error=GONE)
    chain = FallbackScorer([primary, FakeScorer(name="other")], clock=clock)

    async def call() -> Scored:
        return await chain.score(REQUEST, Call(Deadline(5.0), AsyncRuntime()))

    async def main() -> None:
        for _ in range(3):
            await call()
        clock.now, primary.error, primary.delay_s = 5.0, None, 60.0
        trial = asyncio.create_task(call())
        await asyncio.sleep(0.01)
        assert (await call()).served_by == "other", "one trial at a time"
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        primary.delay_s = 0.0
        assert (await call()).served_by == "primary"

    asyncio.run(main())
    first = chain.counters()["primary"]
    assert (first.calls, first.answers, first.failures, first.trials) == (5, 1, 3, 2)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_trial_leaves_the_place_to_the_next_call(clock: Clock, interrupt: BaseException) -> None:
    primary = FakeScorer(name="primary", outcomes=[GONE, GONE, GONE, interrupt])
    chain = FallbackScorer([primary, FakeScorer(name="other")], clock=clock)
    for _ in range(3):
        ask_blocking(chain)
    clock.now = 5.0
    with pytest.raises(type(interrupt)):
        ask_blocking(chain)
    assert ask_blocking(chain).served_by == "primary"


def test_an_abandoned_coroutine_leaves_the_place_to_the_next_call(clock: Clock) -> None:
    class Suspends(FakeScorer):
        async def score(self, request: PairRequest, call: Call) -> Scored:
            if self.error is None and not self.requests[3:]:
                await asyncio.sleep(0)  # needs an event loop, which run_sync refuses
            return await super().score(request, call)

    primary = Suspends(name="primary", error=GONE)
    chain = FallbackScorer([primary, FakeScorer(name="other")], clock=clock)
    for _ in range(3):
        ask_blocking(chain)
    clock.now, primary.error = 5.0, None
    with pytest.raises(RuntimeError, match="event loop"):
        ask_blocking(chain)
    ask_awaiting(chain)
    assert chain.counters()["primary"].answers == 1


# --- readiness, closing, construction ------------------------------------------------------------------------------


def is_ready(chain: Scorer, timeout_s: float = 1.0) -> bool:
    return run_sync(chain.is_ready(Call(Deadline(timeout_s), SyncRuntime())))


def test_it_is_ready_if_any_scorer_is() -> None:
    a, b = FakeScorer(name="a", error=GONE), FakeScorer(name="b", error=GONE)
    chain = FallbackScorer([a, b])
    assert not is_ready(chain), "the caller's order does not count"
    b.error = None
    assert is_ready(chain)
    a.delay_s = math.inf
    assert is_ready(chain, 0.1), "a frozen one leaves time to ask the other"


def test_it_is_not_ready_if_there_is_no_time_to_ask() -> None:
    clock = Clock()
    deadline = Deadline(1.0, clock=clock)
    clock.now = 2.0
    assert not run_sync(FallbackScorer([FakeScorer()]).is_ready(Call(deadline, SyncRuntime())))


def closers() -> Iterable[Callable[[FallbackScorer], None]]:
    def run_aclose(chain: FallbackScorer) -> None:
        asyncio.run(chain.aclose())

    return [FallbackScorer.close, run_aclose]


@pytest.mark.parametrize("close", closers(), ids=["sync", "async"])
def test_closing_closes_all_even_if_one_raises(close: Callable[[FallbackScorer], None]) -> None:
    class Stuck(FakeScorer):
        def close(self) -> None:
            raise OSError("stuck")

        def aclose(self) -> Coroutine[Any, Any, None]:
            raise OSError("stuck")

    a, b = FakeScorer(name="a"), FakeScorer(name="b")
    with pytest.raises(OSError, match="stuck"):
        close(FallbackScorer([a, Stuck(name="stuck"), b]))
    assert a.closed
    assert b.closed


@pytest.mark.parametrize(
    ("scorers", "options", "words"),
    [
        ([], {}, "scorers is empty"),
        ([FakeScorer(), FakeScorer()], {}, "'fake' must stand for one scorer only"),
        ([FakeScorer(name="first-stage-order")], {}, "'first-stage-order' must stand for one"),
        ([FirstStageOrder(), FakeScorer()], {}, "scorers[0] is a FirstStageOrder"),
        ([FakeScorer()], {"attempt_share": 0}, "attempt_share is 0: it must be above 0 and at most 1"),
        ([FakeScorer()], {"attempt_share": 1.5}, "attempt_share is 1.5"),
        ([FakeScorer()], {"attempt_share": math.nan}, "attempt_share is nan"),
        ([FakeScorer()], {"failures": 0}, "failures is 0: it must be a whole number from 1"),
        ([FakeScorer()], {"cool_down_s": 0.0}, "cool_down_s is 0.0: it must be a number of seconds above 0"),
        ([FakeScorer()], {"cool_down_s": math.inf}, "cool_down_s is inf"),
        (
            [FakeScorer()],
            {"cool_down_s": 90.0},
            "max_cool_down_s is 60.0: it must be a number of seconds, at least",
        ),
    ],
)
def test_what_cannot_work_is_said_when_the_chain_is_made(
    scorers: list[Scorer], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FallbackScorer(scorers, **options)
    assert words in str(caught.value)
