"""Which rows are computed next, of all requests that wait. Pure: no clock, no thread, no Triton.

**Least work first, with ageing.** Time is counted in tokens that were taken. A request's turn is when it came
plus `AGEING` times its own tokens, and the lowest turn goes first. So a short request passes a long one, but only if it
comes before another `AGEING` times the long one's tokens were taken: whatever comes later stands behind it.
"""

from __future__ import annotations

import itertools
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from operator import itemgetter

AGEING = 2.0
MOST_WAITING_TOKENS = 4_194_304  # 100 MB of ids


class ScheduleFullError(Exception):
    """More tokens or requests would wait than may; the message says how many."""


@dataclass(eq=False)
class Waiting:
    """A request, some of whose rows are not taken yet.

    Attributes:
        turn: lowest first.
        rows: (tokens, row), ascending, of those that are not taken.
        begun: a row was taken.
    """

    turn: tuple[float, int]
    rows: list[tuple[int, int]] = field(default_factory=list)
    begun: bool = False

    @property
    def tokens(self) -> int:
        """Of the rows that are not taken."""
        return sum(length for length, _ in self.rows)


class Schedule:
    """Micro-batches over the rows of all requests that wait.

    Args:
        batch_tokens: padded tokens of a micro-batch; one row alone may pass it.
        batch_cost_tokens: tokens of padding that are as bad as one batch more; no batch has more padding.
        most_tokens: that may wait; a request that comes when nothing waits is always taken.
        most_requests: that may wait; 0 means no bound.
        flat: nothing is padded, so rows of any lengths go together.
    """

    def __init__(
        self,
        batch_tokens: int,
        batch_cost_tokens: float,
        most_tokens: int = MOST_WAITING_TOKENS,
        most_requests: int = 0,
        *,
        flat: bool = False,
    ) -> None:
        self._batch_tokens, self._batch_cost = batch_tokens, batch_cost_tokens
        self._most_tokens, self._most_requests = most_tokens, most_requests or sys.maxsize
        self._flat = flat
        self._waiting: list[Waiting] = []
        self._numbers = itertools.count()
        self._taken = 0
        self.tokens = 0  # of all rows that wait

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> itertools.chain[Waiting]:
        return itertools.chain(self._waiting)

    def add(self, lengths: Sequence[int], *, bounded: bool = True) -> Waiting:
        """Let a request wait.

        Args:
            lengths: tokens a row, 1 or more of them.
            bounded: refuse it if too much waits already.

        Raises:
            ScheduleFullError: too many tokens or requests wait already.
        """
        own = sum(lengths)
        if bounded and len(self._waiting) >= self._most_requests:
            raise ScheduleFullError(f"{len(self._waiting)} requests wait; at most {self._most_requests} may")
        if bounded and self._waiting and self.tokens + own > self._most_tokens:
            raise ScheduleFullError(f"{own} tokens came and {self.tokens} wait; at most {self._most_tokens} may")
        rows = sorted((length, row) for row, length in enumerate(lengths))
        waiting = Waiting((self._taken + AGEING * own, next(self._numbers)), rows)
        self._waiting.append(waiting)
        self.tokens += own
        return waiting

    def drop(self, waiting: Waiting) -> None:
        """Forget the rows of a request that are not taken yet."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self.tokens -= waiting.tokens
            waiting.rows.clear()

    def take(self) -> list[tuple[Waiting, int]]:
        """Rows of the next micro-batch, with the requests that they are of; empty if none wait.

        The first request's rows, shortest first; then rows of all others that are no longer than these, longest first:
        what comes nearest to the batch's width costs the least padding. Without padding, all others' in their turn.
        """
        picked: list[tuple[Waiting, int]] = []
        width = tokens = 0
        in_turn = sorted(self._waiting, key=lambda waiting: waiting.turn)
        for first in in_turn if self._flat else in_turn[:1]:
            while first.rows and self._fits(len(picked) + 1, first.rows[0][0], tokens + first.rows[0][0], bool(picked)):
                width = first.rows[0][0]
                tokens += width
                picked.append(self._pick(first, 0))
        longest = [
            (-other.rows[place][0], turn, place)
            for turn, other in enumerate(in_turn[1:], start=1)
            if (place := bisect_right(other.rows, width, key=itemgetter(0)) - 1) >= 0
        ]
        heapify(longest)
        while longest and self._fits(len(picked) + 1, width, tokens - longest[0][0], True):
            length, turn, place = longest[0]
            tokens -= length
            picked.append(self._pick(in_turn[turn], place))
            if place:
                heapreplace(longest, (-in_turn[turn].rows[place - 1][0], turn, place - 1))
            else:
                heappop(longest)
        self._taken += tokens
        self.tokens -= tokens
        self._waiting = [waiting for waiting in self._waiting if waiting.rows]
        return picked

    def _fits(self, rows: int, width: int, tokens: int, has_others: bool) -> bool:
        padded = tokens if self._flat else rows * width
        return not has_others or (padded <= self._batch_tokens and padded - tokens <= self._batch_cost)

    @staticmethod
    def _pick(waiting: Waiting, place: int) -> tuple[Waiting, int]:
        waiting.begun = True
        return waiting, waiting.rows.pop(place)[1]
