"""Calls to hosted scorers in the sync and the async form, without a client around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

import pytest
from support.hosted import KEY

from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, PairRequest, Scored
from triton_rerank.errors import RerankError
from triton_rerank.hosted import CohereScorer, JinaScorer, VoyageScorer
from triton_rerank.hosted.http import HostedScorer

Form = Literal["sync", "async"]
DialectName = Literal["cohere", "jina", "voyage"]
T = TypeVar("T")
SCORERS: dict[str, type[HostedScorer]] = {"cohere": CohereScorer, "jina": JinaScorer, "voyage": VoyageScorer}
QUERY = "red apples"
DOCUMENTS = ("blue sky", "red apples grow here", "", "crème brûlée with red fruit")
SLACK_S = 0.3  # beyond a deadline, on busy cores; one anew would be as much again
both_forms = pytest.mark.parametrize("form", ["sync", "async"])
all_dialects = pytest.mark.parametrize("dialect", ["cohere", "jina", "voyage"])


def run(form: Form, ask: Callable[[Call], Coroutine[Any, Any, T]], timeout_s: float = 5.0) -> T:
    if form == "sync":
        return run_sync(ask(Call(Deadline(timeout_s), SyncRuntime())))
    return asyncio.run(ask(Call(Deadline(timeout_s), AsyncRuntime())))


def score(
    form: Form,
    scorer: HostedScorer,
    documents: tuple[str, ...] = DOCUMENTS,
    *,
    timeout_s: float = 5.0,
    max_length: int | None = None,
) -> Scored:
    request = PairRequest(QUERY.encode(), tuple(text.encode() for text in documents), max_length)
    return run(form, lambda call: scorer.score(request, call), timeout_s)


def failure(form: Form, scorer: HostedScorer, *, timeout_s: float = 5.0) -> RerankError:
    with pytest.raises(RerankError) as caught:
        score(form, scorer, timeout_s=timeout_s)
    assert KEY not in str(caught.value)
    return caught.value
