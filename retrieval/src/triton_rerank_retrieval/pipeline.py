"""`Pipeline`: retrieve → fuse → rerank → blend → steps, written once, sync and async.

The work is one coroutine that waits through the client's runtime only: `Pipeline.search` runs it by blocking,
`Pipeline.asearch` awaits it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

from triton_rerank import (
    AsyncRerankClient,
    Attempt,
    ConfigurationError,
    DeadlineExceededError,
    RerankClient,
    RerankError,
    RerankResult,
    Scorer,
    Usage,
)
from triton_rerank.extending import AsyncRuntime, Deadline, Runtime, SyncRuntime, run_sync
from triton_rerank_retrieval.candidates import (
    MODEL_SCORE,
    Candidate,
    Feedback,
    FeedbackRetriever,
    Filter,
    LeftOut,
    Retriever,
    Said,
    Step,
    ranked,
)
from triton_rerank_retrieval.corpus import check_search
from triton_rerank_retrieval.fusion import Fusion, ReciprocalRank, blend
from triton_rerank_retrieval.one_list import OneList
from triton_rerank_retrieval.rules import with_context

T = TypeVar("T")
Rerank = Callable[[str, list[Candidate[Any]], float], Awaitable[RerankResult[Candidate[Any]]]]
RERANK = "rerank"
FUSE = "fuse"  # where first stages are asked once more
logger = logging.getLogger("triton_rerank")


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a pipeline found. Iterates, indexes and measures like a tuple of `Candidate`.

    Attributes:
        candidates: best first; each with what every stage said of it.
        query: as the stages got it.
        left_out: what steps took away, with reasons; what merely ranks below ``k`` is not in it.
        found: different candidates that the first stages found together.
        degraded: a first stage or a scorer failed and others answered; ``reason`` says which and why.
        attempts: who failed.
        seconds: stage -> seconds, on the caller's clock; first stages run side by side.
        usage: pairs and tokens of the reranking; None without a scorer.
    """

    candidates: tuple[Candidate[Any], ...]
    query: str
    left_out: tuple[LeftOut[Any], ...]
    found: int
    degraded: bool
    reason: str | None
    attempts: tuple[Attempt, ...]
    seconds: Mapping[str, float]
    usage: Usage | None

    def __iter__(self) -> Any:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, rank: int) -> Candidate[Any]:
        return self.candidates[rank]


class Pipeline:
    """From a query to the best documents. Safe to share between threads.

    Examples:
        >>> with Pipeline([bm25, dense], scorer=TritonScorer("127.0.0.1:8001", "minilm-l6-demo")) as pipeline:
        ...     for found in pipeline.search("how do I make a file smaller?", k=5):
        ...         print(found.score, found.document, found.said)

    A first stage that fails while another answers is left out of that call: the result is degraded and says so. What a
    scorer's failure means is the scorer's business (`FallbackScorer`): in the first stage's order, candidates keep
    their fused scores.

    Args:
        retrievers: one or more first stages.
        scorer: who reranks: one model, a cascade, a chain, a hosted one, an LLM; None leaves the fused order.
        fusion: makes one list of several first stages' lists; with one first stage there is nothing to fuse.
        feedback: words of that list's best documents join the query of the first stages that search by words (`Bm25`),
            which search once more; None means that one search is all.
        depth: candidates asked of each first stage, and reranked; a call that wants more gets more.
        blend: weight of the reranker, 0 … 1, when its scores are added to the fused ones as z-scores; None means that
            the reranker alone orders. After blending the scale is "blend", and rules for the scale "score" do not
            move anything: give rules that scale.
        steps: rules and diversity, in this order, before the list is cut to ``k``.
        rewrite: query and context -> the query that the stages get.
        timeout_s: seconds for a whole call, unless the call says otherwise.

    Raises:
        ConfigurationError: no first stage, two of one name, a number out of bounds, or feedback for first stages that
            cannot take it.
    """

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        *,
        scorer: Scorer | None = None,
        fusion: Fusion | None = None,
        feedback: Feedback | None = None,
        depth: int = 100,
        blend: float | None = None,
        steps: Sequence[Step] = (),
        rewrite: Callable[[str, Mapping[str, object]], str] = with_context,
        timeout_s: float = 10.0,
    ) -> None:
        names = [retriever.name for retriever in retrievers]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"first stages are {names}: give at least one, each with a name of its own")
        if depth < 1 or (blend is not None and not 0 <= blend <= 1):
            raise ConfigurationError(f"depth is {depth} and blend {blend}: depth must be from 1, blend from 0 to 1")
        given: object = feedback
        if not isinstance(given, Feedback | None):
            raise ConfigurationError(f"feedback is of type {type(feedback).__name__}: it must be Feedback(…), or None")
        if feedback is not None and not any(isinstance(retriever, FeedbackRetriever) for retriever in retrievers):
            raise ConfigurationError(
                f"feedback needs a first stage that takes words in, as Bm25 does: there is {names}"
            )
        self._retrievers = tuple(retrievers)
        self._feedback = feedback
        self._fusion = fusion or ReciprocalRank()
        self._depth = depth
        self._blend = blend
        self._steps = tuple(steps)
        self._rewrite = rewrite
        self._timeout_s = timeout_s
        self._client = None if scorer is None else RerankClient(scorer=scorer, text_key="text")
        self._async_client = None if scorer is None else AsyncRerankClient(scorer=scorer, text_key="text")

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Pipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def close(self) -> None:
        """Close the scorer."""
        if self._client is not None:
            self._client.close()

    async def aclose(self) -> None:
        """Close the scorer, in the event loop that used it."""
        if self._async_client is not None:
            await self._async_client.aclose()

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        context: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> Retrieved:
        """Find the best documents.

        Args:
            query: what the user asks; not blank.
            k: how many, at least 1; more than there are means all.
            filter: documents that may be found, as for `Retriever.search`.
            context: what is known of the one who asks, for ``rewrite``.
            timeout_s: seconds for the whole call; None means the pipeline's.

        Raises:
            InvalidRequestError: an argument is wrong.
            RerankError: every first stage failed, or the scorer did; its class says whose fault it was.
        """
        return run_sync(self._search(query, k, filter, context, timeout_s, SyncRuntime(), self._rerank))

    async def asearch(
        self,
        query: str,
        k: int = 10,
        *,
        filter: Filter | None = None,
        context: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> Retrieved:
        """As `search`; first stages, which block, run in threads."""
        return await self._search(query, k, filter, context, timeout_s, AsyncRuntime(), self._arerank)

    async def _search(
        self,
        query: str,
        k: int,
        filter: Filter | None,
        context: Mapping[str, object] | None,
        timeout_s: float | None,
        runtime: Runtime,
        rerank: Rerank,
    ) -> Retrieved:
        check_search(query, k)
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        seconds: dict[str, float] = {}
        asked = self._rewrite(query, context) if context else query
        depth = max(k, self._depth)
        lists, attempts = await self._first_stages(asked, depth, filter, deadline, runtime, seconds)
        failed, before_s = {attempt.scorer for attempt in attempts}, deadline.elapsed_s()
        job = OneList(self._retrievers, self._fusion, self._feedback, asked, depth, filter, lists, failed)
        candidates = await self._one_list(job, deadline, runtime)
        if job.asks:
            seconds[FUSE] = deadline.elapsed_s() - before_s
        found, result = len(candidates), None
        if self._client is not None and candidates:
            result = await rerank(asked, candidates[:depth], deadline.left_s(doing="reranking"))
            seconds[RERANK] = result.timings.total_s
            candidates = self._reranked(candidates, result)
        left_out: list[LeftOut[Any]] = []
        for step in self._steps:
            outcome = step.apply(asked, candidates)
            candidates = outcome.kept
            left_out += outcome.left_out
        seconds["total"] = deadline.elapsed_s()
        return _retrieved(candidates[:k], asked, left_out, found, attempts, result, seconds)

    async def _first_stages(
        self,
        query: str,
        k: int,
        filter: Filter | None,
        deadline: Deadline,
        runtime: Runtime,
        seconds: dict[str, float],
    ) -> tuple[list[list[Candidate[Any]]], list[Attempt]]:
        async def ask(retriever: Retriever) -> list[Candidate[Any]] | RerankError:
            """Search one first stage within the deadline; an error is returned, so that the others count."""
            before_s = deadline.elapsed_s()
            try:
                left_s = deadline.left_s(doing=f"{retriever.name} was asked")
                found = await runtime.in_thread(lambda: retriever.search(query, k, filter), timeout_s=left_s)
                return ranked(found, retriever.name)
            except RerankError as exc:
                return exc
            except TimeoutError:
                return DeadlineExceededError(f"{retriever.name} did not answer within {deadline.timeout_s:g} s")
            finally:
                seconds[retriever.name] = deadline.elapsed_s() - before_s

        jobs = [lambda retriever=retriever: ask(retriever) for retriever in self._retrievers]
        answers = await runtime.gather(jobs, concurrency=len(jobs))
        return _answered(self._retrievers, answers, seconds)

    async def _one_list(self, job: OneList, deadline: Deadline, runtime: Runtime) -> list[Candidate[Any]]:
        """In a thread if first stages are asked for it."""
        if not job.asks:
            return job.run()
        try:
            return await runtime.in_thread(job.run, timeout_s=deadline.left_s(doing="the lists were fused"))
        except TimeoutError as exc:
            raise DeadlineExceededError(
                f"timeout_s of {deadline.timeout_s:g} s passed while the lists were fused"
            ) from exc

    def _reranked(self, before: Sequence[Candidate[Any]], result: RerankResult[Candidate[Any]]) -> list[Candidate[Any]]:
        """The reranked list; beyond the depth nothing follows, since the scales differ."""
        if all(one.score is None for one in result):  # the order in which they came
            return [one.document for one in result]
        after = [
            one.document.scored(one.score, MODEL_SCORE, Said(RERANK, rank, one.score, one.logit))
            for rank, one in enumerate(result, 1)
        ]
        if self._blend is None:
            return after
        keys = [replace(one, score=key) for one, key in zip(after, _keys(result), strict=True)]
        return blend(before[: len(after)], keys, self._blend)

    async def _rerank(
        self, query: str, candidates: list[Candidate[Any]], timeout_s: float
    ) -> RerankResult[Candidate[Any]]:
        assert self._client is not None
        return self._client.rerank(query, candidates, timeout_s=timeout_s)

    async def _arerank(
        self, query: str, candidates: list[Candidate[Any]], timeout_s: float
    ) -> RerankResult[Candidate[Any]]:
        assert self._async_client is not None
        return await self._async_client.rerank(query, candidates, timeout_s=timeout_s)


def _keys(result: RerankResult[Candidate[Any]]) -> list[float | None]:
    """What to blend by: logits, which no sigmoid has squeezed, else scores; None below a cascade's ``keep``."""
    if all(one.logit is not None for one in result):
        return [one.logit for one in result]
    return [one.score for one in result]


def _answered(
    retrievers: Sequence[Retriever],
    answers: Sequence[list[Candidate[Any]] | RerankError],
    seconds: Mapping[str, float],
) -> tuple[list[list[Candidate[Any]]], list[Attempt]]:
    """The lists of those that answered, an empty one for each that did not, and why."""
    errors = [answer for answer in answers if isinstance(answer, RerankError)]
    fatal = [error for error in errors if not error.falls_back]
    if fatal or len(errors) == len(answers):
        raise (fatal or errors)[0]
    attempts = []
    for retriever, answer in zip(retrievers, answers, strict=True):
        if isinstance(answer, RerankError):
            logger.warning("first stage %s failed, others answered: %s", retriever.name, answer)
            attempts.append(Attempt(retriever.name, type(answer).__name__, str(answer), seconds[retriever.name]))
    return [[] if isinstance(answer, RerankError) else answer for answer in answers], attempts


def _retrieved(
    candidates: Sequence[Candidate[Any]],
    query: str,
    left_out: Sequence[LeftOut[Any]],
    found: int,
    attempts: Sequence[Attempt],
    result: RerankResult[Candidate[Any]] | None,
    seconds: Mapping[str, float],
) -> Retrieved:
    reasons = [f"{attempt.scorer}: {attempt.reason}" for attempt in attempts]
    if result is not None and result.degraded:
        reasons.append(f"{RERANK}: {result.reason or result.served_by}")
    return Retrieved(
        candidates=tuple(candidates),
        query=query,
        left_out=tuple(left_out),
        found=found,
        degraded=bool(reasons),
        reason="; ".join(reasons) or None,
        attempts=(*attempts, *(result.attempts if result else ())),
        seconds=dict(seconds),
        usage=result.usage if result else None,
    )
