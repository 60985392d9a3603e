"""How a list can be split into requests, and what each way pads. Pure: nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from triton_rerank._plan import BYTES_PER_TOKEN, Limits, plan
from triton_rerank_bench.workloads import QUERY_WORDS, TextMaker, Workload, lognormal_lengths

Strategy = Literal["plan", "ideal", "sorted", "naive"]
STRATEGIES: tuple[Strategy, ...] = ("plan", "ideal", "sorted", "naive")
PAIR_OVERHEAD_BYTES = 8  # as the client's scorer counts: a length before each of the two texts
MEAN_WORDS = 75

Groups = Sequence[Sequence[int]]  # indexes of the documents of each request


@dataclass(frozen=True)
class ListFigures:
    """What is known of a list before anything is timed.

    Attributes:
        documents: how many.
        tokens: of all pairs, special tokens included, padding not.
        bytes: of all pairs, as the client counts them.
        requests: by strategy.
        padded_tokens: by strategy, of the tensors that reach the encoder.
    """

    documents: int
    tokens: int
    bytes: int
    requests: dict[Strategy, int]
    padded_tokens: dict[Strategy, int]


@dataclass(frozen=True)
class PlannedList:
    """A query with its documents, and how each strategy groups them."""

    workload: Workload
    groups: dict[Strategy, Groups]
    figures: ListFigures


def make_lists(sizes: Sequence[int], *, spread: float, seed: int) -> list[Workload]:
    """One query with documents for each size, lengths log-normal around `MEAN_WORDS` words, in no order.

    Args:
        sizes: how many documents.
        spread: standard deviation of the logarithm of the length.
        seed: of the texts.
    """
    maker = TextMaker(seed)
    made = []
    for size in sizes:
        query = maker.words(QUERY_WORDS)
        lengths = maker.shuffled(lognormal_lengths(size, mean=MEAN_WORDS, spread=spread))
        documents = [maker.document(length, query) for length in lengths]
        made.append(Workload(f"{size} documents", " ".join(query), documents, calls=1))
    return made


def plan_list(workload: Workload, token_counts: Sequence[int], limits: Limits) -> PlannedList:
    """Group a list in all four ways.

    Args:
        workload: the list.
        token_counts: of its pairs, as the server counts them.
        limits: of the server.
    """
    lengths = [len(document.encode()) for document in workload.documents]
    overhead = len(workload.query.encode()) + PAIR_OVERHEAD_BYTES
    groups: dict[Strategy, Groups] = {
        "plan": plan(lengths, overhead=overhead, limits=limits),
        "ideal": plan([int(count * BYTES_PER_TOKEN) for count in token_counts], overhead=0, limits=limits),
        "sorted": plan(lengths, overhead=overhead, limits=replace(limits, length_ladder=())),
        "naive": in_order(len(lengths), limits.max_batch_size),
    }
    figures = ListFigures(
        documents=len(lengths),
        tokens=sum(token_counts),
        bytes=sum(lengths) + overhead * len(lengths),
        requests={strategy: len(parts) for strategy, parts in groups.items()},
        padded_tokens={s: padded_tokens(parts, token_counts, limits.length_ladder) for s, parts in groups.items()},
    )
    return PlannedList(workload, groups, figures)


def in_order(n: int, max_batch_size: int) -> list[range]:
    """The caller's order, cut where the server's limit wants it."""
    return [range(start, min(start + max_batch_size, n)) for start in range(0, n, max_batch_size)]


def padded_tokens(groups: Groups, token_counts: Sequence[int], ladder: Sequence[int]) -> int:
    """Tokens of the encoder's tensors: each request is padded to the first rung that holds its longest pair.

    Args:
        groups: indexes of the documents of each request.
        token_counts: of all pairs, none above the last rung.
        ladder: padded lengths, ascending.
    """
    longest = [max(token_counts[index] for index in group) for group in groups]
    return sum(
        len(group) * next(rung for rung in ladder if rung >= most) for group, most in zip(groups, longest, strict=True)
    )
