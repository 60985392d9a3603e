"""The gate: an export is served only if it orders real pairs as the PyTorch model does.

Both sides start from text. One is transformers with its own tokenizer, a pair at a time; the other is the very code
that runs inside Triton, in batches, with the files that will be served.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError
from triton_rerank_export.triton_config import Precision

PARITY_SET = Path(__file__).parent / "parity_set.jsonl"
_LONG_REPEATS = 40  # a document repeated so often is longer than any max_length of 512

Scorer = Callable[[str, Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Bounds:
    """What an export in some precision must keep.

    Attributes:
        max_logit_difference: largest absolute difference to PyTorch fp32.
        min_kendall_tau: mean over the queries, of the two orders.
        min_top1_kept: share of queries whose best document stays the best.
    """

    max_logit_difference: float
    min_kendall_tau: float
    min_top1_kept: float


# int8 is held to its order. Its logits may move; how far is in docs/results.md.
BOUNDS: dict[Precision, Bounds] = {
    "fp32": Bounds(1e-4, 0.99, 1.0),
    "int8": Bounds(float("inf"), 0.90, 0.90),
}


@dataclass(frozen=True)
class ParityQuery:
    """One query with its documents; ``extremes`` of them, the last ones, are made and not real text."""

    query: str
    documents: tuple[str, ...]
    extremes: int = 0


@dataclass(frozen=True)
class ParityReport:
    """What the comparison found.

    Attributes:
        pairs: pairs compared.
        max_logit_difference: largest absolute difference.
        kendall_tau: mean over the queries.
        top1_kept: share of queries whose best document is the same.
        worst: the pairs that differ most, as text for a message.
        canary: the query whose best and worst document are furthest apart, best first.
    """

    pairs: int
    max_logit_difference: float
    kendall_tau: float
    top1_kept: float
    worst: tuple[str, ...]
    canary: ParityQuery

    def misses(self, bounds: Bounds) -> list[str]:
        """Bounds that are not kept, each as a sentence with the value and the bound."""
        checks = (
            ("largest logit difference", self.max_logit_difference, bounds.max_logit_difference, False),
            ("Kendall's tau", self.kendall_tau, bounds.min_kendall_tau, True),
            ("share of queries with the same best document", self.top1_kept, bounds.min_top1_kept, True),
        )
        return [
            f"{what} is {value:.3g}, the bound is {'at least' if least else 'at most'} {bound:g}"
            for what, value, bound, least in checks
            if (value < bound if least else not value <= bound)  # NaN misses both
        ]


def load_parity_set(path: Path = PARITY_SET) -> list[ParityQuery]:
    """Read the bundled queries, and add to each what traffic has too: an empty, a repeated, an overlong document."""
    queries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        documents = list(entry["documents"])
        extremes = ["", documents[0], " ".join([documents[-1]] * _LONG_REPEATS)]
        queries.append(ParityQuery(entry["query"], (*documents, *extremes), len(extremes)))
    return queries


def compare(
    queries: Sequence[ParityQuery], reference: Scorer, served: Scorer, *, on_query: Callable[[], object]
) -> ParityReport:
    """Score every query on both sides.

    Args:
        queries: the parity set.
        reference: PyTorch; logits float32 ``(n,)`` of one query with n documents.
        served: the export, likewise.
        on_query: called after each query, for a progress bar.
    """
    expected, got = [], []
    for query in queries:
        expected.append(reference(query.query, query.documents))
        got.append(served(query.query, query.documents))
        on_query()
    differences = [np.abs(e - g) for e, g in zip(expected, got, strict=True)]
    return ParityReport(
        pairs=sum(len(query.documents) for query in queries),
        max_logit_difference=float(np.max(np.concatenate(differences))),
        kendall_tau=float(np.mean([kendall_tau(e, g) for e, g in zip(expected, got, strict=True)])),
        top1_kept=float(np.mean([e[np.argmax(g)] == np.max(e) for e, g in zip(expected, got, strict=True)])),
        worst=_worst(queries, expected, got),
        canary=_canary(queries, expected),
    )


def check(report: ParityReport, precision: Precision) -> None:
    """Hold a report against the bounds of its precision.

    Raises:
        ExportError: a bound is not kept; names it and the worst pairs.
    """
    misses = report.misses(BOUNDS[precision])
    if misses:
        raise ExportError(
            f"the {precision} export does not agree with PyTorch on {report.pairs} pairs: {'; '.join(misses)}. "
            "Worst pairs (PyTorch, export):\n  " + "\n  ".join(report.worst)
        )


def kendall_tau(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> float:
    """Kendall's tau of two score lists over the pairs that ``expected`` does not tie: 1 same order, −1 reversed."""
    rows, columns = np.triu_indices(len(expected), k=1)
    signs = np.sign(expected[rows] - expected[columns])
    agreement = signs * np.sign(got[rows] - got[columns])
    return float(agreement.sum() / max(np.abs(signs).sum(), 1.0))


def _worst(
    queries: Sequence[ParityQuery], expected: Sequence[npt.NDArray[np.float32]], got: Sequence[npt.NDArray[np.float32]]
) -> tuple[str, ...]:
    rows = [
        (abs(float(e - g)), f"{e:9.4f} {g:9.4f}  {query.query[:40]!r} / {document[:40]!r}")
        for query, es, gs in zip(queries, expected, got, strict=True)
        for document, e, g in zip(query.documents, es, gs, strict=True)
    ]
    return tuple(text for _, text in sorted(rows, key=lambda row: -row[0])[:5])


def _canary(queries: Sequence[ParityQuery], expected: Sequence[npt.NDArray[np.float32]]) -> ParityQuery:
    real = [logits[: len(logits) - query.extremes] for query, logits in zip(queries, expected, strict=True)]
    widest = int(np.argmax([np.ptp(logits) for logits in real]))
    query, logits = queries[widest], real[widest]
    return ParityQuery(query.query, (query.documents[int(np.argmax(logits))], query.documents[int(np.argmin(logits))]))
