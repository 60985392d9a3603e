"""What every dialect's answer is made from. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from triton_rerank import RankedDocument, RerankResult
from triton_rerank_gateway.question import Question


@dataclass(frozen=True, slots=True)
class Row:
    """One result as dialects tell it.

    Attributes:
        index: place in the caller's list.
        score: finite; 0 to 1 unless raw scores were asked for.
        logit: the model's raw output, None where the model tells none.
        truncated: query or document was cut.
        best_chunk: start and end character of the chunk that the score is of, None for a document scored whole.
        token_count: that the model read of the pair, None where it tells none.
    """

    index: int
    score: float
    logit: float | None
    truncated: bool
    best_chunk: tuple[int, int] | None = None
    token_count: int | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with what was said to it.

    Attributes:
        question: as asked.
        results: one a part.
        model: public name of the model.
        request_id: of this request.
        created: seconds since 1970.
        waited_s: seconds before it was its turn.
        total_s: seconds from the request's first byte.
    """

    question: Question
    results: tuple[RerankResult[str], ...]
    model: str
    request_id: str
    created: int
    waited_s: float = 0.0
    total_s: float = 0.0

    @property
    def token_count(self) -> int:
        """Tokens that models read."""
        return sum(result.usage.token_count for result in self.results)

    @property
    def degraded(self) -> bool:
        """Another than the first choice answered."""
        return any(result.degraded for result in self.results)

    @property
    def reason(self) -> str:
        """Who did not answer, and why, without addresses; empty where nothing is to be said."""
        failed = [f"{each.scorer}: {each.error}" for result in self.results for each in result.attempts]
        return "; ".join(dict.fromkeys(failed)) or ("no model ranked the documents" if self.degraded else "")

    @property
    def served_by(self) -> str:
        """Name of the scorer that answered."""
        return ", ".join(dict.fromkeys(result.served_by for result in self.results))

    def rows(self) -> list[Row]:
        """Results of a ranking, best first, as the question wants them; without any score none is below the least."""
        question, result = self.question, self.results[0]
        least = question.extras.min_score if any(ranked.score is not None for ranked in result) else None
        rows = visible(result, raw=question.raw_scores)
        return [row for row in rows if least is None or row.score >= least][: question.top_k]

    def scores(self) -> list[float]:
        """Scores of pairs in the order of the request."""
        found = [{row.index: row.score for row in visible(one, raw=self.question.raw_scores)} for one in self.results]
        return [found[part][index] for part, index in self.question.places]


def visible(result: RerankResult[str], *, raw: bool) -> Iterator[Row]:
    """Rows with finite scores that never rise down the list.

    Scores lie in 0..1, since clients rescale or refuse others: the sigmoid of the logit, which is the score itself
    where the model has a sigmoid. A document that the deciding model did not score gets what its stage said, below
    all that were scored; where no model scored anything, all have 0, which keeps the caller's order.
    """
    ceiling, stages, last = 1.0, -1, math.inf if raw else 1.0
    for ranked in result:
        if len(ranked.stages) != stages:
            ceiling, stages = last, len(ranked.stages)
        last = min(last, _raw(ranked) if raw else ceiling * _share(ranked))
        yield Row(ranked.index, last, ranked.logit, ranked.truncated, ranked.best_chunk, ranked.token_count)


def _share(ranked: RankedDocument[str]) -> float:
    told = ranked if ranked.score is not None or not ranked.stages else ranked.stages[-1]
    if told.logit is not None:
        return 1 / (1 + math.exp(-told.logit)) if told.logit > -700 else 0.0
    return 0.0 if told.score is None else min(1.0, max(0.0, told.score))


def _raw(ranked: RankedDocument[str]) -> float:
    told = ranked if ranked.score is not None or not ranked.stages else ranked.stages[-1]
    value = told.score if told.logit is None else told.logit
    return 0.0 if value is None else float(value)
