"""Ratios of seconds within one run, held against wide bounds: what breaks them is a regression, not a busy machine.

One list with many short documents among a few long ones, so that all three ratios are far from 1 where all is well:

- served over in process: nothing between the caller and the engine costs much;
- in process over unsorted: the engine sorts rows by length. "Unsorted" are batches of as many padded tokens in the
  caller's order: against those, unlike one batch of all, the ratio is that of the padding, on two cores as on sixty. An
  engine that computes one batch of all loses to them on few cores (docs/LOG.md);
- int8 over fp32: the int8 graph is one, and runs on the processor's instructions for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triton_rerank import RerankClient
from triton_rerank.repository import Artefacts
from triton_rerank_bench.compare.contestants import IN_PROCESS, SERVED, Contestant, InProcess, Served
from triton_rerank_bench.compare.race import Ratio, ratio, run_rounds
from triton_rerank_bench.machine import Machine
from triton_rerank_bench.workloads import QUERY_WORDS, TextMaker, Workload

UNSORTED = "unsorted"
FP32 = "fp32"
N_SHORT, SHORT_WORDS = 88, 10
N_LONG, LONG_WORDS = 12, 80
_VNNI = {"avx_vnni", "avx512_vnni"}


@dataclass(frozen=True)
class Bound:
    """How long one contestant may take beside another; ``most`` lies between what is usual and what is broken."""

    numerator: str
    denominator: str
    most: float


OVERHEAD = Bound(SERVED, IN_PROCESS, 1.4)  # usual: 1.05; everything done twice: 2
SORTING = Bound(IN_PROCESS, UNSORTED, 0.6)  # usual: 0.3; not sorted: 1
INT8 = Bound(IN_PROCESS, FP32, 0.75)  # usual: 0.5 with VNNI; fp32 by mistake: 1
BOUNDS = (OVERHEAD, SORTING, INT8)


@dataclass(frozen=True)
class Verdict:
    """What came of a bound."""

    bound: Bound
    ratio: Ratio

    @property
    def passed(self) -> bool:
        """Does the median of the rounds hold it?"""
        return self.ratio.median <= self.bound.most

    def __str__(self) -> str:
        told = f"{self.ratio.numerator} / {self.ratio.denominator}: at most {self.bound.most:g}, measured "
        return f"{told}{self.ratio.median:.3f} ({self.ratio.min:.3f} to {self.ratio.max:.3f})"


class Unsorted(InProcess):
    """Ours without Triton and without its sorting: batches of the engine's size in the caller's order."""

    name = UNSORTED

    def __init__(self, model: Artefacts) -> None:
        super().__init__(model)
        self._engine.batch_cost_tokens = math.inf  # it would cut the batches where their padding grows

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Logits."""
        pairs = self._tokenizer.encode(query, documents)
        inputs = {name: getattr(pairs, name) for name in self._engine.input_names}
        lengths = pairs.token_count[:, 0].astype(np.intp)
        logits = [
            self._engine.logits([{name: array[rows] for name, array in inputs.items()}])[0]
            for rows in in_order(lengths, self._engine.micro_batch_tokens)
        ]
        return [float(logit) for logit in np.concatenate(logits)[:, 0]]


def in_order(lengths: npt.NDArray[np.intp], budget: int) -> Iterator[slice]:
    """Batches of rows as they come, each of at most ``budget`` padded tokens (one row may pass it).

    Args:
        lengths: int ``(n,)``, tokens a row.
        budget: tokens a batch, padding to its longest row included.
    """
    start = longest = 0
    for end, length in enumerate(lengths.tolist()):
        if end > start and max(longest, length) * (end + 1 - start) > budget:
            yield slice(start, end)
            start, longest = end, 0
        longest = max(longest, length)
    yield slice(start, len(lengths))


def uneven(seed: int) -> Workload:
    """100 documents in seeded order, most of them short, some eight times as long."""
    maker = TextMaker(seed)
    query = maker.words(QUERY_WORDS // 2)
    lengths = maker.shuffled([SHORT_WORDS] * N_SHORT + [LONG_WORDS] * N_LONG)
    return Workload("uneven", " ".join(query), [maker.document(length, query) for length in lengths], calls=1)


def contestants(client: RerankClient, int8: Artefacts, fp32: Artefacts) -> list[Contestant]:
    """Everybody that `BOUNDS` name.

    Args:
        client: of a server with the int8 model.
        int8: the same model's files.
        fp32: files of the model in fp32.
    """
    in_fp32 = InProcess(fp32)
    in_fp32.name = FP32
    return [Served(client), InProcess(int8), Unsorted(int8), in_fp32]


def measure(
    contestants: Sequence[Contestant], bounds: Sequence[Bound], *, n_rounds: int, seed: int, attempts: int = 1
) -> list[Verdict]:
    """Time the contestants in alternation and hold their ratios against the bounds.

    Args:
        contestants: those that the bounds name.
        bounds: at least one.
        n_rounds: counted rounds of an attempt; the verdict is on the median of their ratios.
        seed: of the texts and of the turns.
        attempts: at most so many measurements; another is made only while a bound is broken, and the lowest ratio
            counts: other work on the machine passes, a regression stays.

    Returns:
        One verdict a bound.
    """
    verdicts = _measure(contestants, bounds, n_rounds, seed)
    for attempt in range(1, attempts):
        if all(verdict.passed for verdict in verdicts):
            break
        again = _measure(contestants, bounds, n_rounds, seed + attempt)
        verdicts = [min(pair, key=lambda v: v.ratio.median) for pair in zip(verdicts, again, strict=True)]
    return verdicts


def no_int8_here(machine: Machine) -> str | None:
    """Why int8 is not held against fp32 on this machine, or None."""
    if _VNNI & set(machine.cpu_flags):
        return None
    return f"{machine.cpu} has no VNNI: int8 is served there, but need not be faster than fp32"


def _measure(contestants: Sequence[Contestant], bounds: Sequence[Bound], n_rounds: int, seed: int) -> list[Verdict]:
    workload = uneven(seed)
    rounds = run_rounds(contestants, [workload], n_rounds=n_rounds, seed=seed, during=nullcontext())
    seconds = rounds.seconds[workload.name]
    return [Verdict(bound, ratio(bound.numerator, bound.denominator, seconds)) for bound in bounds]
