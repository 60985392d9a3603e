"""Does a token cost the same in a short list as in a long one? Served lists of several sizes, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from triton_rerank_bench.contestants import Contestant
from triton_rerank_bench.rounds import Ratio, ratio, run_rounds
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
        over_reference: time a token over that in the list of `REFERENCE` documents.
    """

    documents: int
    tokens: int
    us_per_token: float
    over_reference: Ratio


def measure_list_sizes(
    served: Contestant,
    count_tokens: Callable[[Workload], int],
    *,
    n_rounds: int,
    seed: int,
    on_call: Callable[[str], None],
    during: AbstractContextManager[object],
) -> list[SizeSpeed]:
    """Time lists of `SIZES` documents, whose lengths have one distribution, one after the other in each round.

    Args:
        served: who scores them.
        count_tokens: of all pairs of a list.
        n_rounds: counted rounds.
        seed: of the texts.
        on_call: told who is next before each turn.
        during: entered for each turn, outside its clock.
    """
    lists = {
        size: replace(passages(seed, size), name=f"{size} documents", calls=max(1, _TURN_DOCUMENTS // size))
        for size in SIZES
    }
    rounds = run_rounds([served], list(lists.values()), n_rounds=n_rounds, seed=seed, on_call=on_call, during=during)
    seconds = {size: rounds.seconds[each.name][served.name] for size, each in lists.items()}
    return per_token({size: count_tokens(each) for size, each in lists.items()}, seconds)


def per_token(tokens: Mapping[int, int], seconds: Mapping[int, Sequence[float]]) -> list[SizeSpeed]:
    """Seconds of whole lists as time a token.

    Args:
        tokens: documents of a list -> tokens of its pairs; `REFERENCE` is among them.
        seconds: documents of a list -> seconds a call, one a round.
    """
    us = {str(size): [1e6 * each / tokens[size] for each in seconds[size]] for size in tokens}
    return [
        SizeSpeed(size, tokens[size], statistics.median(us[str(size)]), ratio(str(size), str(REFERENCE), us))
        for size in tokens
    ]
