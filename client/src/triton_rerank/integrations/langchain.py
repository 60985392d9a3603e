"""LangChain: `TritonRerank`, a document compressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field, PrivateAttr, SkipValidation

from triton_rerank.aio import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.contract import DEFAULT_TIMEOUT_S
from triton_rerank.integrations import DEGRADED_KEY
from triton_rerank.scorers.base import Scorer
from triton_rerank.types import RankedDocument, RerankResult

SCORE_KEY = "relevance_score"  # as LangChain's other rerankers call it


class TritonRerank(BaseDocumentCompressor):
    """Reorders retrieved documents by a cross-encoder, for a ContextualCompressionRetriever or a chain of your own.

    Typical use:
        >>> reranker = TritonRerank(target="127.0.0.1:8001", model="minilm-l6-demo", top_n=3)
        >>> reranker.compress_documents(retriever.invoke(question), question)[0].metadata["relevance_score"]

    Documents come back as copies, best first, with `SCORE_KEY` in their metadata. It is left out where the model that
    made the order did not score the document. Where another than the first choice answered, every document also has
    `DEGRADED_KEY`, with the reason.

    Attributes:
        target: as for `RerankClient`.
        model: public model name.
        scorer: who orders documents, instead of target and model: a chain, a cascade and so on. ``client.scorer``
            shares the connections of a client that is already there.
        top_n: how many to return, None for all. The client's ``top_k`` under the name that LangChain's rerankers have.
        min_score: leave out documents with a lower score.
        timeout_s: seconds for a whole call.

    Raises:
        ConfigurationError: neither or both of model and scorer.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # a misspelt top_n would return everything

    target: str | None = None
    model: str | None = None
    scorer: SkipValidation[Scorer] | None = Field(default=None, exclude=True)
    top_n: int | None = Field(default=None, ge=1)
    min_score: float | None = None
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0)
    _client: RerankClient = PrivateAttr()
    _async_client: AsyncRerankClient = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Make the clients; nothing is sent before the first call."""
        self._client = RerankClient(self.target, model=self.model, scorer=self.scorer, text_key="page_content")
        self._async_client = AsyncRerankClient(scorer=self._client.scorer, text_key="page_content")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rerank.

        Args:
            documents: what was retrieved; none give none, without a call.
            query: what the user asks.
            callbacks: not used, since no other runnable is called.

        Raises:
            RerankError: as for `RerankClient.rerank`.
        """
        return _compressed(
            self._client.rerank(query, documents, top_k=self.top_n, min_score=self.min_score, timeout_s=self.timeout_s)
        )

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`; cancelling it cancels what it sent."""
        return _compressed(
            await self._async_client.rerank(
                query, documents, top_k=self.top_n, min_score=self.min_score, timeout_s=self.timeout_s
            )
        )


def _compressed(result: RerankResult[Document]) -> list[Document]:
    return [ranked.document.model_copy(update={"metadata": _metadata(ranked, result)}) for ranked in result]


def _metadata(ranked: RankedDocument[Document], result: RerankResult[Document]) -> dict[str, Any]:
    """The document's own, without what an earlier reranker said of it, and with what this one says."""
    metadata = {key: value for key, value in ranked.document.metadata.items() if key not in (SCORE_KEY, DEGRADED_KEY)}
    if ranked.score is not None:
        metadata[SCORE_KEY] = ranked.score
    if result.degraded:
        metadata[DEGRADED_KEY] = result.reason or result.served_by
    return metadata
