"""Many requests at once: those of one query share its pairs, and each gets its own result back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from triton_rerank import InvalidRequestError, RankedDocument, RerankClient, RerankError, RerankResult, Usage


@dataclass(frozen=True)
class Request:
    """One request of many.

    Attributes:
        id: tells its result apart.
        query: what is asked.
        documents: strings, mappings or objects, as the client's ``text_key`` reads them.
        top_k: how many to return; None means all.
    """

    id: str
    query: str
    documents: Sequence[Any]
    top_k: int | None = None


class RerankService:
    """Reranks many requests by one client: grouped by query, a pair that several ask for scored once.

    With a `CachedScorer` in the client, pairs that were scored before are not scored at all.

    Args:
        client: shared with others; not closed here.
        concurrency: queries under way at a time.
    """

    def __init__(self, client: RerankClient, *, concurrency: int = 4) -> None:
        self._client = client
        self._concurrency = concurrency

    def rerank(
        self, requests: Iterable[Request], *, timeout_s: float | None = None
    ) -> Mapping[str, RerankResult[Any] | RerankError]:
        """Rerank all requests under one deadline.

        Returns:
            Request id -> its result, or the error that its query met; in the order of the requests. ``usage.pairs`` is
            the request's own; tokens and timings are those of its whole group.

        Raises:
            InvalidRequestError: two requests of one id.
        """
        asked = list(requests)
        ids = [request.id for request in asked]
        if len(set(ids)) < len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise InvalidRequestError(f"the request id {twice[:80]!r} stands twice: give each its own")
        groups: dict[str, list[Request]] = {}
        for request in asked:
            groups.setdefault(request.query, []).append(request)
        lists = [[document for request in group for document in request.documents] for group in groups.values()]
        answers = self._client.rerank_many(list(groups), lists, timeout_s=timeout_s, concurrency=self._concurrency)
        results: dict[str, RerankResult[Any] | RerankError] = {}
        for group, answer in zip(groups.values(), answers, strict=True):
            results.update(_apart(group, answer))
        return {id: results[id] for id in ids}


def _apart(
    group: Sequence[Request], answer: RerankResult[Any] | RerankError
) -> Mapping[str, RerankResult[Any] | RerankError]:
    """The group's answer, for each request its own part."""
    if isinstance(answer, RerankError):
        return {request.id: answer for request in group}
    results: dict[str, RerankResult[Any] | RerankError] = {}
    begin = 0
    for request in group:
        end = begin + len(request.documents)
        own = [_moved(one, begin) for one in answer if begin <= one.index < end]
        usage = Usage(len(own), answer.usage.token_count, answer.usage.cached_pairs)
        results[request.id] = replace(answer, documents=tuple(own[: request.top_k]), usage=usage)
        begin = end
    return results


def _moved(one: RankedDocument[Any], begin: int) -> RankedDocument[Any]:
    return replace(one, index=one.index - begin)
