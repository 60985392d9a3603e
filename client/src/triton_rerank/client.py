"""`RerankClient`: validate → plan → score → rank."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from triton_rerank import _plan, _ranking, _validate, _wire
from triton_rerank._deadline import Deadline
from triton_rerank.contract import DEFAULT_GRPC_TARGET, DEFAULT_TIMEOUT_S, MAX_REQUEST_BYTES
from triton_rerank.scorers.base import Scorer
from triton_rerank.scorers.triton import TritonScorer
from triton_rerank.types import ModelInfo, RankedDocument, RerankResult, Timings, Usage

_PAIR_OVERHEAD_BYTES = 8  # BYTES tensors carry a 4-byte length before each of the two texts


class RerankClient:
    """Reranks documents by a cross-encoder that Triton serves.

    Typical use:
        >>> with RerankClient("127.0.0.1:8001", model="minilm-l6-demo") as client:
        ...     for ranked in client.rerank("how do I compress a file?", documents, top_k=3):
        ...         print(ranked.score, ranked.document)

    Safe to share between threads. Nothing is sent before the first call.

    Args:
        target: ``host:port`` of Triton's gRPC endpoint.
        model: public model name, as in the model repository.
        timeout_s: seconds for a whole call, unless the call says otherwise.
    """

    def __init__(self, target: str = DEFAULT_GRPC_TARGET, *, model: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.model = model
        self.timeout_s = _validate.check_timeout(timeout_s)
        self._scorer: Scorer = TritonScorer(target, model)
        self._info: ModelInfo | None = None

    def __enter__(self) -> RerankClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._scorer.close()

    def rerank(
        self, query: str, documents: Iterable[str], *, top_k: int | None = None, timeout_s: float | None = None
    ) -> RerankResult:
        """Order documents by how well they answer the query.

        Args:
            query: what the user asks; not blank.
            documents: any number of texts. None are left out: an empty text keeps its index.
            top_k: how many to return; None means all, more than there are means all.
            timeout_s: seconds for the whole call, sub-requests included; None means the client's.

        Returns:
            Documents, best first. An empty list of documents gives an empty result without a call.

        Raises:
            InvalidRequestError: an argument is wrong; the message names it, its value and the bound.
            ConfigurationError: the server does not have this model, or it is no reranker.
            TransportError: no answer, or none in time.
            ServerError: the server refused or failed.
            InvalidResponseError: the answer does not fit the contract.
        """
        deadline = self._deadline(timeout_s)
        request = _validate.check_request(query, documents)
        keep = _validate.check_top_k(top_k, len(request.documents))
        scores, n_requests = self._score(request, deadline)
        scoring_s = deadline.elapsed_s()
        ranked = self._rank(request, scores, deadline)[:keep] if keep else ()
        usage = Usage(pairs=len(request.documents), token_count=int(scores.token_count.sum()))
        return RerankResult(ranked, self.model, usage, Timings(deadline.elapsed_s(), scoring_s, n_requests))

    def score(self, query: str, documents: Iterable[str], *, timeout_s: float | None = None) -> list[float]:
        """Score documents without ordering them.

        Args:
            query: as for `rerank`.
            documents: as for `rerank`.
            timeout_s: as for `rerank`.

        Returns:
            One score a document, in the caller's order, after the model's activation.

        Raises:
            RerankError: as for `rerank`.
        """
        deadline = self._deadline(timeout_s)
        request = _validate.check_request(query, documents)
        if not request.documents:
            return []
        scores, _ = self._score(request, deadline)
        activated = _ranking.activate(scores.logits, self._model_info(deadline).activation)
        return [float(score) for score in activated]

    def model_info(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Activation, limits, precision and source of the model, as the server states them.

        Raises:
            RerankError: as for `rerank`.
        """
        return self._model_info(self._deadline(timeout_s))

    def is_ready(self, *, timeout_s: float = 2.0) -> bool:
        """True if the server answers and the model is loaded; never raises for a server that is not there."""
        return self._scorer.is_model_ready(_validate.check_timeout(timeout_s))

    def is_server_ready(self, *, timeout_s: float = 2.0) -> bool:
        """True if the server answers and all its models are loaded."""
        return self._scorer.is_server_ready(_validate.check_timeout(timeout_s))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self.timeout_s if timeout_s is None else _validate.check_timeout(timeout_s))

    def _model_info(self, deadline: Deadline) -> ModelInfo:
        if self._info is None:
            self._info = self._scorer.model_info(deadline)
        return self._info

    def _score(self, request: _validate.Request, deadline: Deadline) -> tuple[_wire.PairScores, int]:
        if not request.documents:
            return _wire.merge([], 0), 0
        groups = _plan.plan(
            [len(document) for document in request.encoded],
            overhead=len(request.query) + _PAIR_OVERHEAD_BYTES,
            max_batch_size=self._model_info(deadline).max_batch_size,
            max_request_bytes=MAX_REQUEST_BYTES,
        )
        parts = [
            (group, self._scorer.score_pairs(request.query, [request.encoded[i] for i in group], deadline))
            for group in groups
        ]
        return _wire.merge(parts, len(request.documents)), len(groups)

    def _rank(
        self, request: _validate.Request, scores: _wire.PairScores, deadline: Deadline
    ) -> tuple[RankedDocument, ...]:
        activated = _ranking.activate(scores.logits, self._model_info(deadline).activation)
        return tuple(
            RankedDocument(
                index=int(index),
                document=request.documents[index],
                score=float(activated[index]),
                logit=float(scores.logits[index]),
                truncated=bool(scores.truncated[index]),
            )
            for index in _ranking.order(scores.logits)
        )
