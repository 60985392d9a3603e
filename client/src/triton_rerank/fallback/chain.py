"""Scorers in a row: the first that answers takes over the whole request.

A chain goes on after every error but the first choice's "this request is wrong", skips a scorer that keeps failing, and
ends, unless it fails closed, with the caller's own order. Locks are held for bookkeeping only, never while a scorer
works.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace

import numpy as np

from triton_rerank.core.deadline import Clock
from triton_rerank.core.numbers import real, whole
from triton_rerank.core.remade import Remade
from triton_rerank.core.scorer import Call, PairRequest, Scored, Scorer
from triton_rerank.errors import (
    AllScorersFailedError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    RequestTooLargeError,
    RerankError,
)
from triton_rerank.fallback.breaker import Breaker, Front, ScorerCounters
from triton_rerank.types import Attempt

logger = logging.getLogger("triton_rerank")

__all__ = ["FallbackScorer", "FirstStageOrder", "ScorerCounters"]

SKIPPED = "Skipped"
_REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class _Link:
    """One scorer of a chain."""

    scorer: Scorer
    name: str
    position: int
    breaker: Breaker


class FirstStageOrder:
    """Keeps the caller's order, costs nothing and never fails; its results are degraded and have no scores.

    Args:
        name: what results, logs and counters call it.
    """

    def __init__(self, name: str = "first-stage-order") -> None:
        self.name = name

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """No logits and no scores: the order is the request's. Answers even when no time is left."""
        return Scored(
            model="first-stage-order",
            served_by=self.name,
            logits=None,
            scores=None,
            truncated=np.zeros(len(request.documents), np.bool_),
            token_count=0,
            requests=0,
            degraded=True,
            reason="no model ranked the documents: they keep the caller's order",
        )

    async def is_ready(self, call: Call) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing to release."""

    async def aclose(self) -> None:
        """Nothing to release."""


class FallbackScorer(Remade):
    """Asks scorers in order until one answers; safe to share between threads.

    An error of a scorer sends the whole request to the next one: it failed (its class has ``falls_back``), it is set
    up wrongly (`ConfigurationError`: an expired key or certificate, a model that is not there), or it does not take
    this request (`InvalidRequestError` of any scorer but the first: a smaller ``max_length``; `RequestTooLargeError` of
    any). The last two are logged at ERROR, once until the scorer answers again or refuses otherwise. Only the first
    choice's own `InvalidRequestError` is raised: it says that the caller's request is wrong.

    After ``failures`` failures in a row a scorer is skipped for ``cool_down_s``, then one call tries it: an answer
    makes it a scorer like the others again, a failure doubles the cool-down. A request that a scorer does not take is
    no failure. Where every scorer is being skipped, the one that would be tried first is asked all the same.

    A scorer that others could still follow gets ``attempt_share`` of the time that is left, the last one gets all of
    it. Time that ran out is a failure like any other, unless less than half of ``timeout_s`` was left when the call
    came here (the last queries of a ``rerank_many``): calls that share a chain should have similar timeouts.

    If none answers, the caller's order is returned with ``degraded=True`` and no scores. A chain is a scorer too,
    and may stand in another one; make it fail closed unless it stands last, else nothing behind it is ever asked.

    Args:
        scorers: first choice first; a `FirstStageOrder` may stand last, and is implied where none does.
        fail_closed: raise `AllScorersFailedError` in place of returning the caller's order. Without effect if a
            `FirstStageOrder` is among the scorers.
        attempt_share: above 0, at most 1.
        failures: in a row, at least 1.
        cool_down_s: seconds, above 0.
        max_cool_down_s: seconds, at least ``cool_down_s``.
        name: what logs, and the counters of a chain around this one, call it.
        clock: monotonic seconds, for cool-downs.

    Raises:
        ConfigurationError: no scorer, two of one name, a `FirstStageOrder` that is not last, or a number out of bounds.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        *,
        fail_closed: bool = False,
        attempt_share: float = 0.5,
        failures: int = 3,
        cool_down_s: float = 5.0,
        max_cool_down_s: float = 60.0,
        name: str = "fallback",
        clock: Clock = time.monotonic,
    ) -> None:
        failures = whole("failures", failures, must="a whole number from 1")
        cool_down_s = real("cool_down_s", cool_down_s, least=0, above=True, must="a number of seconds above 0")
        must = f"a number of seconds, at least cool_down_s ({cool_down_s:g} s)"
        max_cool_down_s = real("max_cool_down_s", max_cool_down_s, least=cool_down_s, must=must)
        self.name = name
        self._attempt_share = real(
            "attempt_share", attempt_share, least=0, above=True, most=1, must="above 0 and at most 1"
        )
        self._lock = threading.Lock()
        self._links = [
            _Link(
                scorer,
                scorer.name,
                position,
                Breaker(failures=failures, cool_down_s=cool_down_s, max_cool_down_s=max_cool_down_s, clock=clock),
            )
            for position, scorer in enumerate(_complete(scorers, fail_closed=fail_closed))
        ]
        self._models = [link for link in self._links if not isinstance(link.scorer, FirstStageOrder)]
        self._front = Front(settle_s=cool_down_s, clock=clock)

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Score with the first scorer that answers.

        Raises:
            AllScorersFailedError: none did, and the chain fails closed.
            InvalidRequestError: the first choice's.
        """
        changes = self._front.changes
        late = call.deadline.elapsed_s() > call.deadline.timeout_s / 2
        attempts: list[Attempt] = []
        for link, anyway in self._in_turn(attempts):
            answer = await self._ask(link, request, call, anyway=anyway, late=late)
            if isinstance(answer, Scored):
                self._say_who_answers(link, attempts, changes)
                return _with_attempts(answer, attempts, first_choice=link.position == 0)
            attempts.append(answer)
        told = "; ".join(map(_line, attempts))
        raise AllScorersFailedError(f"no scorer of {self.name!r} answered: {told}", attempts=tuple(attempts))

    async def is_ready(self, call: Call) -> bool:
        """True if any scorer is; the caller's own order does not count, as no model stands behind it."""
        for link in self._models:
            try:
                own = self._own(call, last=link is self._models[-1])
                if await link.scorer.is_ready(own):
                    return True
            except DeadlineExceededError:
                continue  # not ready in its time
        return False

    def counters(self) -> dict[str, ScorerCounters]:
        """A snapshot: name of the scorer -> what was done with it, in the order of the chain."""
        with self._lock:
            return {link.name: link.breaker.counters() for link in self._links}

    def close(self) -> None:
        """Close every scorer, even if one raises; what was raised is raised at the end."""
        with ExitStack() as stack:
            for link in reversed(self._links):
                stack.callback(link.scorer.close)

    async def aclose(self) -> None:
        """Close every scorer, even if one raises; what was raised is raised at the end."""
        async with AsyncExitStack() as stack:
            for link in reversed(self._links):
                stack.push_async_callback(link.scorer.aclose)

    def _in_turn(self, attempts: list[Attempt]) -> Iterator[tuple[_Link, bool]]:
        """Whom to ask next, and whether even if it is being skipped."""
        yield from ((link, False) for link in self._models)
        if attempts and all(attempt.error == SKIPPED for attempt in attempts):
            with self._lock:
                first = min(self._models, key=lambda link: (not link.breaker.admits(), link.breaker.cooling_s()))
            attempts[:] = [attempt for attempt in attempts if attempt.scorer != first.name]
            yield first, True
        yield from ((link, False) for link in self._links[len(self._models) :])

    async def _ask(
        self, link: _Link, request: PairRequest, call: Call, *, anyway: bool, late: bool
    ) -> Scored | Attempt:
        """Ask one scorer; that it failed, refused or was not asked is returned."""
        began_s = call.deadline.elapsed_s()
        with self._lock:
            permit = link.breaker.permit()
            last = anyway or not any(later.breaker.admits() for later in self._models[link.position + 1 :])
        try:
            own = call if link.position == len(self._models) else self._own(call, last=last)
        except DeadlineExceededError as exc:
            with self._lock:
                link.breaker.passed_over()
            return Attempt(link.name, type(exc).__name__, str(exc), 0.0)
        try:
            with self._lock:
                if not link.breaker.admit(permit, anyway=anyway):
                    return Attempt(link.name, SKIPPED, link.breaker.why_skipped(), 0.0)
            scored = await link.scorer.score(request, own)
        except RerankError as exc:
            if link.position == 0 and _is_the_callers(exc):
                raise
            tells = not isinstance(exc, InvalidRequestError) and not (late and isinstance(exc, DeadlineExceededError))
            with self._lock:
                link.breaker.failed(permit, type(exc).__name__, tells=tells)
                news = not exc.falls_back and link.breaker.is_news(type(exc).__name__)
            if news:
                logger.error("%s: %s refuses, others are asked: %s: %s", self.name, link.name, type(exc).__name__, exc)
            return Attempt(link.name, type(exc).__name__, _short(exc), call.deadline.elapsed_s() - began_s)
        else:
            with self._lock:
                link.breaker.succeeded()
            return scored
        finally:  # a cancelled trial, too, makes room for the next one
            with self._lock:
                link.breaker.release(permit)

    def _own(self, call: Call, *, last: bool) -> Call:
        """The call with the time of one attempt."""
        if not last:
            return replace(call, deadline=call.deadline.part(self._attempt_share))
        call.deadline.left_s(doing="the next attempt")
        return call

    def _say_who_answers(self, link: _Link, attempts: Sequence[Attempt], changes: int) -> None:
        with self._lock:
            before = self._links[self._front.position]
            changed = self._front.move(link.position, since=changes)
        if changed and link.position < before.position:
            logger.warning("%s: %s answers again, in place of %s", self.name, link.name, before.name)
        elif changed:
            why = "; ".join(map(_line, attempts))
            logger.warning("%s: %s answers in place of %s (%s)", self.name, link.name, before.name, why)


def _complete(scorers: Sequence[Scorer], *, fail_closed: bool) -> list[Scorer]:
    """The scorers of a chain, the caller's order at the end of an open one."""
    chain = list(scorers)
    if not chain:
        raise ConfigurationError("scorers is empty: a chain needs at least one")
    ends = [isinstance(scorer, FirstStageOrder) for scorer in chain]
    if any(ends[:-1]):
        raise ConfigurationError(
            f"scorers[{ends.index(True)}] is a FirstStageOrder, which always answers: nothing behind it would ever be "
            "asked; put it last"
        )
    if not fail_closed and not ends[-1]:
        chain.append(FirstStageOrder())
    names = [scorer.name for scorer in chain]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"scorers have the names {names}: {', '.join(map(repr, twice))} must stand for one scorer only, as results "
            "and counters tell them apart by it; give each its own name="
        )
    return chain


def _with_attempts(scored: Scored, attempts: Sequence[Attempt], *, first_choice: bool) -> Scored:
    told = replace(scored, attempts=(*attempts, *scored.attempts))
    if first_choice:
        return told
    reasons = [*map(_line, attempts), *([scored.reason] if scored.reason else [])]
    return replace(told, degraded=True, reason="; ".join(reasons))


def _line(attempt: Attempt) -> str:
    return f"{attempt.scorer}: {attempt.error}: {attempt.reason}"


def _is_the_callers(error: RerankError) -> bool:
    """The request itself is wrong, as far as the first choice can say; one that is too large for it may fit another."""
    return isinstance(error, InvalidRequestError) and not isinstance(error, RequestTooLargeError)


def _short(error: RerankError) -> str:
    text = str(error)
    return text if len(text) <= _REASON_CHARACTERS else f"{text[: _REASON_CHARACTERS - 1]}…"
