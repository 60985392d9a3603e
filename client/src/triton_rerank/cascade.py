"""A light model looks at all documents, a heavy one at the best of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from triton_rerank.core.numbers import whole
from triton_rerank.core.ranking import order
from triton_rerank.core.remade import Remade
from triton_rerank.core.scorer import Call, PairRequest, Scored, Scorer, Stage

Rows = npt.NDArray[np.intp]


class CascadeScorer(Remade):
    """Orders all documents by ``light``, and the best ``keep`` of them anew by ``heavy``.

    The result has heavy's documents first, by heavy, then the rest, by light: the two scales never mix. Only heavy's
    documents have a score on the result; what each stage said of a document stands in its ``stages``.

    - A request of at most ``keep`` documents goes to heavy alone, since light would decide nothing.
    - Both stages share the call's deadline, and the three ``max_`` lengths hold for both.
    - If light's chain fell open (no scores), the caller's order picks the ``keep``; if heavy's did, light's order is
      the result. Both results are degraded. An error of either stage is the call's error: put a stage into a
      `FallbackScorer` to go on without it.
    - Either stage may be a cascade itself.

    Args:
        light: fast; scores every document.
        heavy: good; scores the best ``keep``. Its model is the result's.
        keep: documents for heavy, at least 1.
        name: what results, logs and counters call it.

    Raises:
        ConfigurationError: ``keep`` is not a whole number from 1.
    """

    def __init__(self, light: Scorer, heavy: Scorer, *, keep: int = 20, name: str = "cascade") -> None:
        self._light = light
        self._heavy = heavy
        self._keep = whole("keep", keep, must="a whole number from 1")
        self.name = name

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Ask light, then heavy.

        Returns:
            ``tiers`` 0 for heavy's documents, 1 for the rest. In tier 0 ``logits`` and ``scores`` are heavy's; in
            tier 1 they are no model's output but light's order as numbers, the best the highest, equal ones equal.

        Raises:
            RerankError: either stage failed.
        """
        if len(request.documents) <= self._keep:
            heavy = await self._heavy.score(request, call)
            everything = np.arange(len(request.documents))
            return replace(heavy, served_by=self.name, stages=_stages(heavy, everything, everything.size))
        light = await self._light.score(request, call)
        best = np.sort(order(_keys(light), light.tiers)[: self._keep])  # (keep,) indexes into the request
        kept = tuple(request.documents[row] for row in best)
        heavy = await self._heavy.score(replace(request, documents=kept), call)
        return self._merge(light, heavy, best)

    async def is_ready(self, call: Call) -> bool:
        """True if both stages are."""
        return await self._light.is_ready(call) and await self._heavy.is_ready(call)

    def close(self) -> None:
        """Close both stages."""
        try:
            self._light.close()
        finally:
            self._heavy.close()

    async def aclose(self) -> None:
        """Close both stages."""
        try:
            await self._light.aclose()
        finally:
            await self._heavy.aclose()

    def _merge(self, light: Scored, heavy: Scored, best: Rows) -> Scored:
        n_documents = light.truncated.size
        order_made_by = light if heavy.scores is None else _on_top(light, heavy, best)
        return replace(
            order_made_by,
            served_by=self.name,
            token_count=light.token_count + heavy.token_count,
            requests=light.requests + heavy.requests,
            cached_pairs=light.cached_pairs + heavy.cached_pairs,
            stages=_stages(light, np.arange(n_documents), n_documents) + _stages(heavy, best, n_documents),
            degraded=light.degraded or heavy.degraded or heavy.scores is None,
            reason=_reason(light, heavy),
            attempts=light.attempts + heavy.attempts,
        )


def _on_top(light: Scored, heavy: Scored, best: Rows) -> Scored:
    """Heavy's documents in its tiers, the rest in light's tiers below them."""
    # equal keys stay equal, so that documents which the core found to be duplicates keep the caller's order
    _, place = np.unique(_keys(light), return_inverse=True)  # (n,), 0 the worst
    logits = None
    if heavy.logits is not None:
        logits = place.astype(np.float32)  # exact below 2^24 documents
        logits[best] = heavy.logits
    scores = place.astype(np.float64)
    scores[best] = heavy.scores
    truncated = light.truncated.copy()
    truncated[best] = heavy.truncated
    counts = None
    if light.token_counts is not None and heavy.token_counts is not None:
        counts = light.token_counts.copy()
        counts[best] = heavy.token_counts
    upper, lower = _tiers(heavy), _tiers(light)
    tiers = lower + upper.max() + 1
    tiers[best] = upper
    return replace(heavy, logits=logits, scores=scores, truncated=truncated, tiers=tiers, token_counts=counts)


def _keys(scored: Scored) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    """What to sort by within a tier, the best the highest ``(n,)``."""
    if scored.logits is not None:
        return scored.logits
    if scored.scores is not None:
        return scored.scores
    return -np.arange(scored.truncated.size, dtype=np.float64)


def _tiers(scored: Scored) -> Rows:
    return np.zeros(scored.truncated.size, np.intp) if scored.tiers is None else scored.tiers


def _stages(scored: Scored, rows: Rows, n_documents: int) -> tuple[Stage, ...]:
    """What a scorer said of ``rows``, spread over all documents; more than one stage if it is a cascade itself."""
    stages = scored.stages
    if not stages and scored.scores is not None:
        stages = (Stage(scored.model, scored.scores, scored.logits),)
    return tuple(_spread(stage, rows, n_documents) for stage in stages)


def _spread(stage: Stage, rows: Rows, n_documents: int) -> Stage:
    scores = np.full(n_documents, np.nan)
    scores[rows] = stage.scores
    if stage.logits is None:
        return Stage(stage.model, scores, None)
    logits = np.full(n_documents, np.nan, np.float32)
    logits[rows] = stage.logits
    return Stage(stage.model, scores, logits)


def _reason(light: Scored, heavy: Scored) -> str | None:
    """Why the result is degraded, stage by stage."""
    reasons = [
        f"{stage} stage: {scored.reason or 'no model answered'}"
        for stage, scored in (("light", light), ("heavy", heavy))
        if scored.degraded or scored.scores is None
    ]
    return "; ".join(reasons) or None
