"""`AsyncRerankClient`: the core, run by an event loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from triton_rerank.confidence import ConfidenceBands
from triton_rerank.contract import DEFAULT_TIMEOUT_S
from triton_rerank.core.core import Core, Options
from triton_rerank.core.long import DEFAULT_MAX_CHUNKS, DEFAULT_OVERLAP_TOKENS, LongDocuments
from triton_rerank.core.remade import Remade
from triton_rerank.core.runtime import AsyncRuntime
from triton_rerank.core.scorer import Scorer
from triton_rerank.core.validate import TextKey
from triton_rerank.errors import RerankError
from triton_rerank.triton.channel import TritonOptions
from triton_rerank.triton.scorer import choose_scorer
from triton_rerank.types import D, ModelInfo, RerankResult


class AsyncRerankClient(Remade):
    """`RerankClient` for an event loop: the same arguments, results and errors, its methods awaited.

    Examples:
        >>> async with AsyncRerankClient("127.0.0.1:8001", model="minilm-l6-demo") as client:
        ...     result = await client.rerank("how do I compress a file?", documents, top_k=3)

    Cancelling a call cancels what it sent. Every event loop gets connections of its own.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        model: str | None = None,
        scorer: Scorer | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        text_key: TextKey = "text",
        confidence: ConfidenceBands | None = None,
        options: TritonOptions | None = None,
    ) -> None:
        self.scorer = choose_scorer(target, model, scorer, options)
        self._core = Core(self.scorer, AsyncRuntime(), timeout_s=timeout_s, text_key=text_key, confidence=confidence)

    async def __aenter__(self) -> AsyncRerankClient:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of this event loop; a fork of the process that made them leaves them alone."""
        self._core.forget()
        await self.scorer.aclose()

    async def rerank(
        self,
        query: str,
        documents: Iterable[D],
        *,
        top_k: int | None = None,
        min_score: float | None = None,
        timeout_s: float | None = None,
        max_length: int | None = None,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        instruction: str | None = None,
        headers: Mapping[str, str] | None = None,
        long_documents: LongDocuments = "truncate",
        max_chunks: int = DEFAULT_MAX_CHUNKS,
        overlap_tokens: int = DEFAULT_OVERLAP_TOKENS,
    ) -> RerankResult[D]:
        """As `RerankClient.rerank`."""
        cutting = (long_documents, max_chunks, overlap_tokens)
        lengths = (max_length, max_query_tokens, max_document_tokens)
        options = Options(top_k, min_score, timeout_s, *lengths, headers, *cutting, instruction=instruction)
        return await self._core.rerank(query, documents, options)

    async def rerank_many(
        self,
        queries: Iterable[str],
        document_lists: Iterable[Iterable[D]],
        *,
        top_k: int | None = None,
        min_score: float | None = None,
        timeout_s: float | None = None,
        max_length: int | None = None,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        instruction: str | None = None,
        headers: Mapping[str, str] | None = None,
        concurrency: int = 4,
    ) -> list[RerankResult[D] | RerankError]:
        """As `RerankClient.rerank_many`, with a task for each query."""
        lengths = (max_length, max_query_tokens, max_document_tokens)
        options = Options(top_k, min_score, timeout_s, *lengths, headers, instruction=instruction)
        return await self._core.rerank_many(queries, document_lists, options, concurrency)

    async def score(
        self,
        query: str,
        documents: Iterable[object],
        *,
        timeout_s: float | None = None,
        max_length: int | None = None,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        instruction: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[float]:
        """As `RerankClient.score`."""
        lengths = (max_length, max_query_tokens, max_document_tokens)
        options = Options(None, None, timeout_s, *lengths, headers, instruction=instruction)
        return await self._core.score(query, documents, options)

    async def model_info(self, *, timeout_s: float | None = None) -> ModelInfo:
        """As `RerankClient.model_info`."""
        return await self._core.model_info(timeout_s)

    async def is_ready(self, *, timeout_s: float = 2.0) -> bool:
        """As `RerankClient.is_ready`."""
        return await self._core.is_ready(timeout_s)
