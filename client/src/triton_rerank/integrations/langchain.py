"""LangChain: `TritonRerank`, a document compressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triton_rerank.integrations import DEGRADED_KEY, not_installed, retrieval_key

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
except ImportError as exc:
    raise not_installed("langchain", exc) from exc

from triton_rerank.integrations.fields import Options
from triton_rerank.types import RankedDocument, RerankResult

SCORE_KEY = "relevance_score"  # as LangChain's other rerankers call it


class TritonRerank(BaseDocumentCompressor, Options):
    """Reorders retrieved documents by a cross-encoder, for a ContextualCompressionRetriever or a chain of your own.

    Examples:
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
        max_length: longest pair in tokens; None means the model's own.
        max_query_tokens: most tokens that are kept of the query; None means the model's own rule.
        instruction: what a model with a prompt is told to look for; None means the prompt's own.
        keep_retrieval_score: metadata key under which a score that stood under `SCORE_KEY` is kept (an earlier
            reranker's, or a retriever's); True means ``retrieval_score``. Other keys are never touched.

    Raises:
        ConfigurationError: neither or both of model and scorer.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Make the clients; nothing is sent before the first call."""
        self._connect("page_content")

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
        return self._compressed(self._client.rerank(query, documents, **self._options()))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`; cancelling it cancels what it sent."""
        return self._compressed(await self._async_client.rerank(query, documents, **self._options()))

    def _compressed(self, result: RerankResult[Document]) -> list[Document]:
        kept = retrieval_key(self.keep_retrieval_score)
        return [ranked.document.model_copy(update={"metadata": _metadata(ranked, result, kept)}) for ranked in result]


def _metadata(ranked: RankedDocument[Document], result: RerankResult[Document], kept: str | None) -> dict[str, Any]:
    """The document's own, without what an earlier reranker said of it, and with what this one says."""
    own = ranked.document.metadata
    metadata = {key: value for key, value in own.items() if key not in (SCORE_KEY, DEGRADED_KEY)}
    if kept is not None and SCORE_KEY in own:
        metadata[kept] = own[SCORE_KEY]
    if ranked.score is not None:
        metadata[SCORE_KEY] = ranked.score
    if result.degraded:
        metadata[DEGRADED_KEY] = result.reason or result.served_by
    return metadata
