"""What a scorer said -> order, scores and the documents of the result. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from triton_rerank.core.scorer import Scored, Stage
from triton_rerank.types import Activation, Confidence, D, RankedDocument, StageScore

T = TypeVar("T", bound=np.generic)


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
        return (-keys).argsort(kind="stable")
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
    # log(sigmoid(x)) = -log(1 + exp(-x)), which overflows nowhere
    scores: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -wide))
    return scores


def rank(
    documents: Sequence[D],
    places: Sequence[int],
    judged: Scored,
    *,
    top_k: int,
    min_score: float | None,
    bands: Bands | None = None,
    chunks: Sequence[tuple[int, int] | None] | None = None,
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
        chunks: of each distinct text, where the chunk is that its score is of.
    """
    if places != range(len(judged.truncated)):  # a text came more than once
        judged = at_rows(judged, np.asarray(places, dtype=np.intp))
    rows = _best(judged, top_k, min_score)
    tiers = None if judged.tiers is None else judged.tiers[rows].tolist()
    scores, logits = _values(judged.scores, rows, tiers), _values(judged.logits, rows, tiers)
    truncated, indexes = judged.truncated[rows].tolist(), rows.tolist()
    found = map(documents.__getitem__, indexes)
    counts = [None] * len(indexes) if judged.token_counts is None else judged.token_counts[rows].tolist()
    if bands is None and not judged.stages and chunks is None:
        plain = repeat(None), repeat(()), repeat(None)
        return tuple(map(RankedDocument, indexes, found, scores, logits, truncated, *plain, counts))
    confidence = [None if bands is None else bands.band(judged.model, score) for score in scores]
    stages = [_stage_scores(judged, row) for row in indexes]
    best = [None if chunks is None else chunks[places[row]] for row in indexes]
    return tuple(map(RankedDocument, indexes, found, scores, logits, truncated, confidence, stages, best, counts))


def at_rows(judged: Scored, rows: npt.NDArray[np.intp]) -> Scored:
    """What was said of some texts, once for each place in ``rows`` ``(n,)``."""
    return replace(
        judged,
        logits=_at(judged.logits, rows),
        scores=_at(judged.scores, rows),
        truncated=judged.truncated[rows],
        token_counts=_at(judged.token_counts, rows),
        tiers=_at(judged.tiers, rows),
        stages=tuple(Stage(stage.model, stage.scores[rows], _at(stage.logits, rows)) for stage in judged.stages),
    )


def _at(column: npt.NDArray[T] | None, rows: npt.NDArray[np.intp]) -> npt.NDArray[T] | None:
    return None if column is None else column[rows]


def _best(judged: Scored, top_k: int, min_score: float | None) -> npt.NDArray[np.intp]:
    keys = judged.scores if judged.logits is None else judged.logits
    if keys is None:
        return np.arange(min(top_k, len(judged.truncated)))
    indexes = order(keys, judged.tiers)
    if min_score is not None:
        assert judged.scores is not None
        enough = judged.scores >= min_score
        if judged.tiers is not None:
            enough &= judged.tiers == 0
        indexes = indexes[enough[indexes]]
    return indexes[:top_k]


def _values(
    column: npt.NDArray[np.float32] | npt.NDArray[np.float64] | None,
    rows: npt.NDArray[np.intp],
    tiers: Sequence[int] | None,
) -> list[float | None]:
    """Python's own values of some rows; only tier 0 has any."""
    if column is None:
        return [None] * len(rows)
    values: list[float | None] = column[rows].tolist()
    return values if tiers is None else [None if tier else value for value, tier in zip(values, tiers, strict=True)]


def _stage_scores(judged: Scored, row: int) -> tuple[StageScore, ...]:
    return tuple(_stage_score(stage, row) for stage in judged.stages if not np.isnan(stage.scores[row]))


def _stage_score(stage: Stage, row: int) -> StageScore:
    logit = None if stage.logits is None else float(stage.logits[row])
    return StageScore(stage.model, float(stage.scores[row]), logit)
