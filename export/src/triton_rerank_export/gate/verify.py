"""Does a running server give the scores that the model's authors published?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from triton_rerank import RerankClient
from triton_rerank_export.checkpoint.catalogue import find
from triton_rerank_export.checkpoint.published import FP16_TOLERANCE, PublishedScore
from triton_rerank_export.errors import ExportError

_WIDTH = 40  # characters shown of a text
BY_ORDER = ("int8", "bf16")  # precisions whose logits are not held against published ones


@dataclass(frozen=True)
class VerifyRow:
    """One published pair.

    Attributes:
        published: the pair and its logit.
        got: logit of the server.
        tolerance: largest difference allowed in the precision that is served; infinite in int8.
        ok: the difference is within it; in int8, no document of the same query has changed places with this one.
    """

    published: PublishedScore
    got: float
    tolerance: float
    ok: bool

    @property
    def difference(self) -> float:
        """Server minus published."""
        return self.got - self.published.logit


@dataclass(frozen=True)
class VerifyReport:
    """What the comparison found.

    Attributes:
        model: public model name.
        precision: what the server says it serves.
        rows: one a pair, in the caller's order.
    """

    model: str
    precision: str
    rows: tuple[VerifyRow, ...]

    @property
    def ok(self) -> bool:
        """Every row is."""
        return all(row.ok for row in self.rows)


def published_scores(model: str) -> Sequence[PublishedScore]:
    """Scores that the catalogue holds of a model.

    Args:
        model: public name or Hugging Face id.

    Raises:
        ExportError: there are none; says what to pass instead.
    """
    entry = find(model)
    if entry is None or not entry.scores:
        raise ExportError(
            f"{model}: the catalogue has no published scores of it; pass --scores FILE, JSON lines with query, "
            "document and logit"
        )
    return entry.scores


def verify(client: RerankClient, scores: Sequence[PublishedScore]) -> VerifyReport:
    """Ask a running server for the published pairs.

    Args:
        client: connected to the server, with the model's name.
        scores: what the logits are held against.

    Raises:
        RerankError: the server does not answer, or does not have the model.
        ExportError: the scores cannot judge the precision that is served.
    """
    info = client.model_info()
    return judge(info.name, info.precision, scores, _ask(client, scores))


def judge(model: str, precision: str, scores: Sequence[PublishedScore], got: Sequence[float]) -> VerifyReport:
    """Hold logits against the published ones, as far as the precision lets them be compared.

    int8 and bf16 move logits by design, so only the order of the documents of a query is judged there.

    Args:
        model: public model name.
        precision: "fp32", "fp16", "int8" or "bf16".
        scores: the published logits.
        got: the server's, in the same order.

    Raises:
        ExportError: int8 or bf16, and no query has two documents that lie apart.
    """
    if precision in BY_ORDER:
        return VerifyReport(model, precision, _judge_order(scores, got))
    floor = FP16_TOLERANCE if precision == "fp16" else 0.0
    rows = []
    for score, logit in zip(scores, got, strict=True):
        tolerance = max(score.tolerance, floor)
        rows.append(VerifyRow(score, logit, tolerance, abs(logit - score.logit) <= tolerance))
    return VerifyReport(model, precision, tuple(rows))


def format_report(report: VerifyReport) -> str:
    """A table of the pairs, and a line that says how they were judged."""
    table = [("query", "document", "published", "served", "difference", "tolerance", "")]
    for row in report.rows:
        texts = _shown(row.published.query), _shown(row.published.document)
        logits = f"{row.published.logit:.4f}", f"{row.got:.4f}", f"{row.difference:+.4f}"
        tolerance = f"{row.tolerance:g}" if math.isfinite(row.tolerance) else "none"
        table.append((*texts, *logits, tolerance, "ok" if row.ok else "WRONG"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[:2] = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, _verdict(report)])


def _ask(client: RerankClient, scores: Sequence[PublishedScore]) -> list[float]:
    """Logits in the order of ``scores``, one request a query."""
    got = [math.nan] * len(scores)
    for query in dict.fromkeys(score.query for score in scores):
        places = [place for place, score in enumerate(scores) if score.query == query]
        for ranked in client.rerank(query, [scores[place].document for place in places]):
            got[places[ranked.index]] = math.nan if ranked.logit is None else ranked.logit
    return got


def _judge_order(scores: Sequence[PublishedScore], got: Sequence[float]) -> tuple[VerifyRow, ...]:
    compared, swapped = 0, set()
    for i, j in itertools.combinations(range(len(scores)), 2):
        published = scores[i].logit - scores[j].logit
        apart = abs(published) > scores[i].tolerance + scores[j].tolerance
        if scores[i].query == scores[j].query and apart:
            compared += 1
            if published * (got[i] - got[j]) <= 0:
                swapped |= {i, j}
    if not compared:
        raise ExportError(
            "int8 and bf16 are held to the order of documents, and the scores have no query with two that lie apart; "
            "add one with --scores FILE, or serve fp32"
        )
    rows = enumerate(zip(scores, got, strict=True))
    return tuple(VerifyRow(score, logit, math.inf, i not in swapped) for i, (score, logit) in rows)


def _verdict(report: VerifyReport) -> str:
    right = sum(row.ok for row in report.rows)
    if report.precision in BY_ORDER:
        judged = f"in the published order; {report.precision} moves logits by design, so the differences are not judged"
    else:
        judged = "within their tolerance"
    return f"{report.model} ({report.precision}): {right} of {len(report.rows)} pairs {judged}"


def _shown(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
