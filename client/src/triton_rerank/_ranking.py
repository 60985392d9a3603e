"""What a scorer said -> order, scores and the documents of the result. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from triton_rerank._scored import Scored, Stage
from triton_rerank.types import Activation, Confidence, D, RankedDocument, StageScore


class Bands(Protocol):
    """Names the band of a score; ``confidence.ConfidenceBands`` is one."""

    def band(self, model: str, score: float | None) -> Confidence | None:
        """None where no thresholds are known."""


def order(
    keys: npt.NDArray[np.float32] | npt.NDArray[np.float64], tiers: npt.NDArray[np.intp] | None = None
) -> npt.NDArray[np.intp]:
    """Document indexes, best first; equal keys keep the caller's order.

    Sorts by the logits: a sigmoid would tie the best documents (in fp16 it is exactly 1.0 from logit 8.4 up).

    Args:
        keys: logits ``(n,)``, all finite; scores where a model gives no logits.
        tiers: int ``(n,)``; a lower tier goes first, whatever the keys.
    """
    if tiers is None:
        return np.argsort(-keys, kind="stable")
    indexes: npt.NDArray[np.intp] = np.lexsort((-keys, tiers))
    return indexes


def activate(logits: npt.NDArray[np.float32], activation: Activation) -> npt.NDArray[np.float64]:
    """Scores on the scale that the model was trained for.

    Args:
        logits: float32 ``(n,)``.
        activation: "sigmoid" (0 to 1) or "identity" (unbounded).

    Returns:
        float64 ``(n,)``.
    """
    wide = logits.astype(np.float64)
    if activation == "identity":
        return wide
    # sigmoid(x) = exp(min(x, 0)) / (1 + exp(-|x|)): no overflow at either end
    scores: npt.NDArray[np.float64] = np.exp(np.minimum(wide, 0.0)) / (1.0 + np.exp(-np.abs(wide)))
    return scores


def rank(
    documents: Sequence[D],
    places: Sequence[int],
    judged: Scored,
    *,
    top_k: int,
    min_score: float | None,
    bands: Bands | None = None,
) -> tuple[RankedDocument[D], ...]:
    """The documents of a result, best first.

    Args:
        documents: n, as the caller gave them.
        places: for each, its place in what was judged (duplicates share one).
        judged: what the scorer said of the distinct texts.
        top_k: most documents to return.
        min_score: leave out what has a lower score, or none; None keeps all. Where nothing has a score (the first
            stage's order) nothing is left out.
        bands: names the confidence of a score.
    """
    rows = np.asarray(places, dtype=np.intp)  # (n,)
    keys = judged.scores if judged.logits is None else judged.logits
    if keys is None:
        truncated = judged.truncated[rows].tolist()
        return tuple(RankedDocument(i, documents[i], None, None, truncated[i]) for i in range(min(top_k, len(rows))))
    tiers = judged.tiers
    indexes = order(keys[rows], None if tiers is None else tiers[rows])
    if min_score is not None:
        assert judged.scores is not None
        enough = judged.scores >= min_score if tiers is None else (judged.scores >= min_score) & (tiers == 0)
        indexes = indexes[enough[rows[indexes]]]
    best = indexes[:top_k]
    columns = _columns(judged, rows[best])
    if bands is None and not judged.stages:
        return tuple(RankedDocument(i, documents[i], *column) for i, column in zip(best.tolist(), columns, strict=True))
    return tuple(
        RankedDocument(i, documents[i], *column, *_extras(judged, row, column[0], bands))
        for i, row, column in zip(best.tolist(), rows[best].tolist(), columns, strict=True)
    )


def _columns(judged: Scored, rows: npt.NDArray[np.intp]) -> Iterable[tuple[float | None, float | None, bool]]:
    """Score, logit and whether it was cut, of each row; as Python's own values, made in one go."""
    shown = np.ones(len(rows), np.bool_) if judged.tiers is None else judged.tiers[rows] == 0
    return zip(
        _values(judged.scores, rows, shown),
        _values(judged.logits, rows, shown),
        judged.truncated[rows].tolist(),
        strict=True,
    )


def _values(
    column: npt.NDArray[np.float32] | npt.NDArray[np.float64] | None,
    rows: npt.NDArray[np.intp],
    shown: npt.NDArray[np.bool_],
) -> list[float | None]:
    if column is None:
        return [None] * len(rows)
    values: list[float | None] = column[rows].tolist()
    return values if shown.all() else [v if s else None for v, s in zip(values, shown.tolist(), strict=True)]


def _extras(
    judged: Scored, row: int, score: float | None, bands: Bands | None
) -> tuple[Confidence | None, tuple[StageScore, ...]]:
    confidence = bands.band(judged.model, score) if bands is not None else None
    return confidence, tuple(_stage_score(stage, row) for stage in judged.stages if not np.isnan(stage.scores[row]))


def _stage_score(stage: Stage, row: int) -> StageScore:
    logit = None if stage.logits is None else float(stage.logits[row])
    return StageScore(stage.model, float(stage.scores[row]), logit)
