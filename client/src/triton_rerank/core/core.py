"""One call from the caller's arguments to the result: validate → score → rank. Written once, run by both clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from triton_rerank.core import long, ranking, validate
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.long import DEFAULT_MAX_CHUNKS, DEFAULT_OVERLAP_TOKENS, LongDocuments
from triton_rerank.core.numbers import described, whole
from triton_rerank.core.runtime import Runtime
from triton_rerank.core.scorer import Call, PairRequest, Scored, Scorer, info_of
from triton_rerank.errors import AllScorersFailedError, ConfigurationError, InvalidRequestError, RerankError
from triton_rerank.types import D, ModelInfo, RerankResult, Timings, Usage


@dataclass(frozen=True, slots=True)
class Options:
    """Arguments of a call, as the caller gave them; the methods of the clients document them."""

    top_k: int | None = None
    min_score: float | None = None
    timeout_s: float | None = None
    max_length: int | None = None
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    long_documents: LongDocuments = "truncate"
    max_chunks: int = DEFAULT_MAX_CHUNKS
    overlap_tokens: int = DEFAULT_OVERLAP_TOKENS
    instruction: str | None = None


class Core:
    """What `RerankClient` and `AsyncRerankClient` have in common, which is everything but waiting."""

    def __init__(
        self,
        scorer: Scorer,
        runtime: Runtime,
        *,
        timeout_s: float,
        text_key: validate.TextKey,
        confidence: ranking.Bands | None,
    ) -> None:
        self.scorer = scorer
        self.timeout_s = validate.check_timeout(timeout_s)
        self._runtime = runtime
        self._text_key = validate.check_text_key(text_key)
        self._confidence = confidence
        self._closed = False

    async def rerank(
        self, query: str, documents: Iterable[D], options: Options, deadline: Deadline | None = None
    ) -> RerankResult[D]:
        """Order documents by how well they answer the query; without a deadline, one begins here."""
        deadline = deadline or self._deadline(options.timeout_s)
        request = validate.check_request(query, documents, self._text_key)
        top_k = validate.check_top_k(options.top_k, len(request.documents))
        min_score = validate.check_min_score(options.min_score)
        pairs = _pairs(request, options)
        if not pairs.documents:
            return _nothing(self.scorer, deadline)
        cutting = _cutting(options)
        before_s = deadline.elapsed_s()
        scored, chunks = await long.score(self.scorer, pairs, self._call(deadline, options), cutting)
        scoring_s = deadline.elapsed_s() - before_s
        ranked = ranking.rank(
            request.documents,
            request.places,
            scored,
            top_k=top_k,
            min_score=min_score,
            bands=self._confidence,
            chunks=chunks,
        )
        return RerankResult(
            documents=ranked,
            model=scored.model,
            usage=Usage(len(request.documents), scored.token_count, scored.cached_pairs),
            timings=Timings(deadline.elapsed_s(), scoring_s, scored.requests),
            model_version=scored.model_version,
            served_by=scored.served_by,
            degraded=scored.degraded,
            reason=scored.reason,
            attempts=scored.attempts,
        )

    async def rerank_many(
        self, queries: Iterable[str], document_lists: Iterable[Iterable[D]], options: Options, concurrency: int
    ) -> list[RerankResult[D] | RerankError]:
        """Rerank for each query under one deadline."""
        deadline = self._deadline(options.timeout_s)
        concurrency = whole("concurrency", concurrency, error=InvalidRequestError)
        asked = validate.check_many(queries, document_lists)

        async def outcome(query: str, documents: Iterable[D]) -> RerankResult[D] | RerankError:
            """Rank one list; its error stands in its place, so that it fails alone."""
            try:
                return await self.rerank(query, documents, options, deadline)
            except RerankError as exc:
                return exc

        jobs = [lambda pair=pair: outcome(*pair) for pair in asked]
        return await self._runtime.gather(jobs, concurrency=concurrency)

    async def score(self, query: str, documents: Iterable[object], options: Options) -> list[float]:
        """Scores in the caller's order."""
        deadline = self._deadline(options.timeout_s)
        request = validate.check_request(query, documents, self._text_key)
        pairs = _pairs(request, options)
        if not pairs.documents:
            return []
        scored = await self.scorer.score(pairs, self._call(deadline, options))
        scores = _one_scale(scored)
        return [scores[place] for place in request.places]

    async def model_info(self, timeout_s: float | None) -> ModelInfo:
        """What the model's server says of it."""
        return await info_of(self.scorer, self._call(self._deadline(timeout_s), Options()))

    async def is_ready(self, timeout_s: float) -> bool:
        """Would a call be answered?"""
        return await self.scorer.is_ready(self._call(self._deadline(timeout_s), Options()))

    def forget(self) -> None:
        """No calls after this."""
        self._closed = True

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self.timeout_s if timeout_s is None else validate.check_timeout(timeout_s))

    def _call(self, deadline: Deadline, options: Options) -> Call:
        if self._closed:
            raise ConfigurationError("the client is closed: make another one, or call inside its with block")
        return Call(deadline, self._runtime, validate.check_headers(options.headers))


def _pairs(request: validate.Request[D], options: Options) -> PairRequest:
    return PairRequest(
        request.query,
        request.distinct,
        max_length=validate.check_tokens("max_length", options.max_length),
        max_query_tokens=validate.check_tokens("max_query_tokens", options.max_query_tokens),
        max_document_tokens=validate.check_tokens("max_document_tokens", options.max_document_tokens),
        instruction=validate.check_instruction(options.instruction),
    )


def _cutting(options: Options) -> long.Cutting:
    if options.long_documents not in ("truncate", "chunk"):
        raise InvalidRequestError(
            f"long_documents is {described(options.long_documents)}: it must be 'truncate' or 'chunk'"
        )
    return long.Cutting(
        options.long_documents == "chunk",
        whole("max_chunks", options.max_chunks, error=InvalidRequestError),
        whole("overlap_tokens", options.overlap_tokens, least=0, error=InvalidRequestError),
    )


def _one_scale(scored: Scored) -> list[float]:
    if scored.scores is None:
        raise AllScorersFailedError(
            f"nobody scored: {scored.reason}; rerank gives the first stage's order instead", attempts=scored.attempts
        )
    if scored.tiers is not None and scored.tiers.any():
        raise ConfigurationError(f"{scored.served_by} scores on two scales: use rerank, whose order never mixes them")
    return [float(score) for score in scored.scores]


def _nothing(scorer: Scorer, deadline: Deadline) -> RerankResult[D]:
    timings = Timings(deadline.elapsed_s(), 0.0, 0)
    return RerankResult((), getattr(scorer, "model", ""), Usage(0, 0), timings, served_by=scorer.name)
