"""Does a token cost the same in a short list as in a long one? Served lists of several sizes, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from triton_rerank_bench.contestants import Contestant
from triton_rerank_bench.rounds import run_rounds
from triton_rerank_bench.workloads import Workload, passages

SIZES = (10, 30, 100, 300, 1000)
REFERENCE = 100
_TURN_DOCUMENTS = 300  # short lists are scored several times in a turn: one call after a pause is a cold one


@dataclass(frozen=True)
class SizeSpeed:
    """One size of list.

    Attributes:
        documents: in the list.
        tokens: of all its pairs.
        us_per_token: microseconds, median over the rounds.
        median: time a token over that in the list of `REFERENCE` documents, paired within rounds.
        min: least of these.
        max: most of these.
    """

    documents: int
    tokens: int
    us_per_token: float
    median: float
    min: float
    max: float


class _List:
    """A contestant that scores its own list so many times, whatever it is given."""

    def __init__(self, served: Contestant, workload: Workload) -> None:
        self.name = str(len(workload.documents))
        self._served, self._workload = served, workload

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        for _ in range(_calls(len(self._workload.documents))):
            scores = self._served.scores(self._workload.query, self._workload.documents)
        return scores


def measure_list_sizes(
    served: Contestant,
    count_tokens: Callable[[Workload], int],
    *,
    n_rounds: int,
    seed: int,
    on_call: Callable[[str], None],
    during: AbstractContextManager[object],
) -> list[SizeSpeed]:
    """Time lists of `SIZES` documents, whose lengths have one distribution, in a new order each round.

    Args:
        served: who scores them.
        count_tokens: of all pairs of a list.
        n_rounds: counted rounds.
        seed: of the texts and of the order.
        on_call: told the number of documents before each turn.
        during: entered for each turn, outside its clock.
    """
    lists = [passages(seed, size) for size in SIZES]
    contestants: list[Contestant] = [_List(served, each) for each in lists]
    nothing = Workload("sizes", "", [], calls=1)
    rounds = run_rounds(contestants, [nothing], n_rounds=n_rounds, seed=seed, on_call=on_call, during=during)
    turns = {len(each.documents): rounds.seconds[nothing.name][str(len(each.documents))] for each in lists}
    seconds = {size: [of_turn / _calls(size) for of_turn in turns[size]] for size in turns}
    return per_token({len(each.documents): count_tokens(each) for each in lists}, seconds)


def per_token(tokens: dict[int, int], seconds: dict[int, list[float]]) -> list[SizeSpeed]:
    """Seconds of whole lists as time a token.

    Args:
        tokens: documents of a list -> tokens of its pairs; `REFERENCE` is among them.
        seconds: documents of a list -> seconds a call, one a round.
    """
    us = {size: [1e6 * each / tokens[size] for each in seconds[size]] for size in tokens}
    ratios = {size: [a / b for a, b in zip(us[size], us[REFERENCE], strict=True)] for size in tokens}
    return [
        SizeSpeed(
            documents=size,
            tokens=tokens[size],
            us_per_token=statistics.median(us[size]),
            median=statistics.median(ratios[size]),
            min=min(ratios[size]),
            max=max(ratios[size]),
        )
        for size in tokens
    ]


def _calls(n_documents: int) -> int:
    return max(1, _TURN_DOCUMENTS // n_documents)
