"""`RerankClient`: the core, run by blocking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from triton_rerank.confidence import ConfidenceBands
from triton_rerank.contract import DEFAULT_TIMEOUT_S
from triton_rerank.core.core import Core, Options
from triton_rerank.core.long import DEFAULT_MAX_CHUNKS, DEFAULT_OVERLAP_TOKENS, LongDocuments
from triton_rerank.core.remade import Remade
from triton_rerank.core.runtime import SyncRuntime, run_sync
from triton_rerank.core.scorer import Scorer
from triton_rerank.core.validate import TextKey
from triton_rerank.errors import RerankError
from triton_rerank.triton.channel import TritonOptions
from triton_rerank.triton.scorer import choose_scorer
from triton_rerank.types import D, ModelInfo, RerankResult


class RerankClient(Remade):
    """Reranks documents by a cross-encoder, on Triton unless ``scorer`` says otherwise.

    Examples:
        >>> with RerankClient("127.0.0.1:8001", model="minilm-l6-demo") as client:
        ...     for ranked in client.rerank("how do I compress a file?", documents, top_k=3):
        ...         print(ranked.score, ranked.document)

    Safe to share between threads. Nothing is sent before the first call, and after that not in a fork of the process.
    A client, like every scorer, may be pickled and copied: it is made anew by the same arguments, with connections of
    its own. A pickle holds what it was made with, headers and keys among it.

    Args:
        target: ``host:port`` of Triton's gRPC endpoint, several with commas between, or a DNS name with many addresses;
            None means ``127.0.0.1:8001``.
        model: public model name, as in the model repository.
        scorer: who orders documents, instead of target and model: a chain, a cascade, a cache and so on.
        timeout_s: seconds for a whole call, unless the call says otherwise.
        text_key: where a document that is not a string has its text: a key of a mapping, an attribute of an object, or
            a function from the document to its text.
        confidence: thresholds that give a score its band.
        options: TLS, headers, retries and so on of the connection to Triton.

    Raises:
        ConfigurationError: the arguments do not fit together.
        InvalidRequestError: a timeout or text_key that cannot be used.
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
        self._core = Core(self.scorer, SyncRuntime(), timeout_s=timeout_s, text_key=text_key, confidence=confidence)

    def __enter__(self) -> RerankClient:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a fork of the process that made them leaves them alone."""
        self._core.forget()
        self.scorer.close()

    def rerank(
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
        """Order documents by how well they answer the query.

        Args:
            query: what the user asks; not blank.
            documents: any number of texts, mappings or objects (see ``text_key``). None are left out: an empty text
                keeps its index. Equal texts are scored once.
            top_k: how many to return; None means all, more than there are means all.
            min_score: leave out documents with a lower score (``RankedDocument.score``, after the model's activation).
            timeout_s: seconds for the whole call, sub-requests, retries and fallback included; None means the client's.
            max_length: longest pair in tokens, at most the model's own; None means the model's own.
            max_query_tokens: most tokens that are kept of the query, so that as many as it leaves are there for the
                document; None means the model's own rule. Hosted scorers cut by their own rule, whatever this says.
            max_document_tokens: most tokens that are kept of each document, or of each chunk of it; None means as many
                as the pair has room for.
            instruction: what a model with a prompt (Qwen3-Reranker and its kind) is told to look for, instead of the
                prompt's own; a model without one refuses it, and hosted scorers are not told of it.
            headers: gRPC metadata of this call, beside those in ``options``.
            long_documents: "truncate": a document longer than the model reads is cut. "chunk": it is scored again as
                overlapping chunks, cut at the ends of sentences or words, and gets the score of its best one
                (``RankedDocument.best_chunk``); it is ``truncated`` only if some of it was not read.
            max_chunks: most chunks of a document; what is behind them is not read.
            overlap_tokens: about as many tokens have neighbouring chunks in common.

        Returns:
            Documents, best first. An empty list of documents gives an empty result without a call.

        Raises:
            InvalidRequestError: an argument is wrong; the message names it, its value and the bound.
            ConfigurationError: the server does not have this model, or it is no reranker.
            TransportError: no answer, or none in time.
            ServerError: the server refused or failed.
            InvalidResponseError: the answer does not fit the contract.
            AllScorersFailedError: a chain that fails closed has nobody left.
        """
        cutting = (long_documents, max_chunks, overlap_tokens)
        lengths = (max_length, max_query_tokens, max_document_tokens)
        options = Options(top_k, min_score, timeout_s, *lengths, headers, *cutting, instruction=instruction)
        return run_sync(self._core.rerank(query, documents, options))

    def rerank_many(
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
        """Rerank for many queries under one deadline.

        Args:
            queries: as for `rerank`.
            document_lists: for each query its documents.
            top_k: as for `rerank`, of each query; so are the arguments that follow.
            min_score: least score.
            timeout_s: seconds for all queries together.
            max_length: longest pair.
            max_query_tokens: most of the query.
            max_document_tokens: most of each document.
            instruction: for a model with a prompt.
            headers: gRPC metadata.
            concurrency: queries that are under way at a time, each in a thread.

        Returns:
            In the order of the queries, a result or the error that this query met; the others go on.

        Raises:
            InvalidRequestError: there are not as many lists as queries, or concurrency or timeout_s is wrong.
        """
        lengths = (max_length, max_query_tokens, max_document_tokens)
        options = Options(top_k, min_score, timeout_s, *lengths, headers, instruction=instruction)
        return run_sync(self._core.rerank_many(queries, document_lists, options, concurrency))

    def score(
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
        """Score documents without ordering them.

        Args:
            query: as for `rerank`; so are the arguments that follow.
            documents: texts, mappings or objects.
            timeout_s: seconds for the whole call.
            max_length: longest pair.
            max_query_tokens: most of the query.
            max_document_tokens: most of each document.
            instruction: for a model with a prompt.
            headers: gRPC metadata.

        Returns:
            One score a document, in the caller's order, after the model's activation.

        Raises:
            RerankError: as for `rerank`; ConfigurationError from a cascade, whose scores have two scales;
                AllScorersFailedError where `rerank` would fall back to the first stage's order.
        """
        lengths = (max_length, max_query_tokens, max_document_tokens)
        options = Options(None, None, timeout_s, *lengths, headers, instruction=instruction)
        return run_sync(self._core.score(query, documents, options))

    def model_info(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Activation, limits, precision and source of the model, asked of the server anew.

        Raises:
            RerankError: as for `rerank`; ConfigurationError from a scorer that is not one single model.
        """
        return run_sync(self._core.model_info(timeout_s))

    def is_ready(self, *, timeout_s: float = 2.0) -> bool:
        """True if a call would be answered now; never raises for a server that is not there."""
        return run_sync(self._core.is_ready(timeout_s))
