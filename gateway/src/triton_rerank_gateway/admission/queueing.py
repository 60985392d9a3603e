"""Who goes next, who waits and who is refused: arithmetic over costs, no clock and no waiting. Pure.

Cost is pairs and estimated tokens. Two bounds hold: what is in flight, and what waits. Keys take turns by weighted fair
queueing: the key that had least for its weight goes next. Where the waiting room is full, a request of a key that uses
less of it than another takes the place of the other's newest: a key that floods refuses itself.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True, slots=True)
class Cost:
    """Pairs, and tokens that they are estimated to have."""

    pairs: int
    tokens: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.pairs + other.pairs, self.tokens + other.tokens)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.pairs - other.pairs, self.tokens - other.tokens)

    def fits(self, bound: Cost) -> bool:
        """Neither is above the bound."""
        return self.pairs <= bound.pairs and self.tokens <= bound.tokens

    def share(self, bound: Cost) -> float:
        """Of the bound, by what there is more of."""
        return max(self.pairs / bound.pairs, self.tokens / bound.tokens)


NOTHING = Cost(0, 0)


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the queue.

    Attributes:
        key: name of its key.
        weight: of its key, above 0.
        cost: of the request.
        priority: lower goes first among the requests of its key.
        number: in order of arrival.
    """

    key: str
    weight: float
    cost: Cost
    priority: int = 0
    number: int = 0

    def order(self) -> tuple[int, int]:
        """Place among the requests of its key."""
        return self.priority, self.number


@dataclass(slots=True)
class _Line:
    """The waiting requests of one key, first in front."""

    weight: float
    tickets: list[Ticket] = field(default_factory=list)
    waiting: Cost = NOTHING
    served: float = 0.0  # share of the flight bound that it had, over its weight


class FairQueue:
    """Admits in turn; what is admitted must be given back by `finish`.

    Args:
        flight: bound of what is in flight.
        room: bound of what waits.
    """

    def __init__(self, flight: Cost, room: Cost) -> None:
        self.flight, self.room = flight, room
        self.in_flight, self.waiting = NOTHING, NOTHING
        self._lines: dict[str, _Line] = {}
        self._rested: dict[str, float] = {}  # what a key had had when its line became empty; as many as there are keys
        self._now = 0.0  # what the line that was served last had had before
        self._numbers = count()

    def offer(self, ticket: Ticket) -> list[Ticket] | None:
        """Let a request wait.

        Returns:
            those that had to leave for it; None if it is refused itself.
        """
        left: list[Ticket] = []
        while not (self.waiting + ticket.cost).fits(self.room):
            victim = self._victim(ticket)
            if victim is None:
                for each in left:  # it would not have fitted: nobody leaves for it
                    self._enter(each)
                return None
            self.drop(victim)
            left.append(victim)
        ticket.number = next(self._numbers)
        self._enter(ticket)
        return left

    def take(self) -> list[Ticket]:
        """The requests whose turn it is; the first that does not fit lets nobody past it, or it would wait for ever."""
        taken: list[Ticket] = []
        while self._lines:
            line = min(self._lines.values(), key=lambda line: line.served)
            ticket = line.tickets[0]
            if not (self.in_flight + ticket.cost).fits(self.flight):
                break
            self._now = line.served
            line.served += ticket.cost.share(self.flight) / line.weight
            self._leave(ticket)
            self.in_flight += ticket.cost
            taken.append(ticket)
        return taken

    def finish(self, ticket: Ticket) -> None:
        """A request that was taken is done."""
        self.in_flight -= ticket.cost

    def drop(self, ticket: Ticket) -> None:
        """A request does not wait any more."""
        self._leave(ticket)

    def _enter(self, ticket: Ticket) -> None:
        line = self._lines.get(ticket.key)
        if line is None:
            line = self._lines[ticket.key] = _Line(
                ticket.weight, served=max(self._now, self._rested.get(ticket.key, 0))
            )
        insort(line.tickets, ticket, key=Ticket.order)
        line.waiting += ticket.cost
        self.waiting += ticket.cost

    def _leave(self, ticket: Ticket) -> None:
        line = self._lines[ticket.key]
        line.tickets.remove(ticket)
        line.waiting -= ticket.cost
        self.waiting -= ticket.cost
        if not line.tickets:
            self._rested[ticket.key] = line.served
            del self._lines[ticket.key]

    def _victim(self, ticket: Ticket) -> Ticket | None:
        """The newest request of the key that has most of the room for its weight, if that is more than this one's."""
        own = self._lines.get(ticket.key)
        after = ticket.cost if own is None else own.waiting + ticket.cost
        most = max(self._lines.values(), key=lambda line: line.waiting.share(self.room) / line.weight, default=None)
        if most is None or most is own:
            return None
        if most.waiting.share(self.room) / most.weight <= after.share(self.room) / ticket.weight:
            return None
        return most.tickets[-1]
