"""LlamaIndex: `TritonRerank`, a node postprocessor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton_rerank.integrations import DEGRADED_KEY, not_installed, retrieval_key

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # documented there
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
except ImportError as exc:
    raise not_installed("llama-index", exc) from exc

from triton_rerank.errors import InvalidRequestError
from triton_rerank.integrations.fields import Options
from triton_rerank.types import RerankResult

_dispatcher = get_dispatcher(__name__)


class TritonRerank(BaseNodePostprocessor, Options):
    """Reorders retrieved nodes by a cross-encoder, for ``node_postprocessors=`` of a query engine.

    Examples:
        >>> reranker = TritonRerank(target="127.0.0.1:8001", model="minilm-l6-demo", top_n=3)
        >>> index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])

    The model reads a node as an embedding model would (``MetadataMode.EMBED``). The retriever's score is replaced, by
    None where the model that made the order did not score the node. Where another than the first choice answered, every
    node is a copy with `DEGRADED_KEY` in its metadata, kept out of prompts and embeddings.

    Attributes:
        target: as for `RerankClient`.
        model: public model name.
        scorer: who orders nodes, instead of target and model: a chain, a cascade and so on. ``client.scorer`` shares
            the connections of a client that is already there. Neither serialised nor pickled.
        top_n: how many to return, None for all.
        min_score: leave out nodes with a lower score.
        timeout_s: seconds for a whole call.
        max_length: longest pair in tokens; None means the model's own.
        max_query_tokens: most tokens that are kept of the query; None means the model's own rule.
        instruction: what a model with a prompt is told to look for; None means the prompt's own.
        keep_retrieval_score: metadata key under which the retriever's score is kept, in copies of the nodes and out of
            prompts and embeddings; True means ``retrieval_score``.

    Raises:
        ConfigurationError: neither or both of model and scorer.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Make the clients; nothing is sent before the first call."""
        self._connect(_text)

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised form."""
        return "TritonRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        with self._reported(nodes, query_bundle) as (query, ranked):
            ranked += self._nodes(self._client.rerank(query, nodes, **self._options()))
        return ranked

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        with self._reported(nodes, query_bundle) as (query, ranked):
            ranked += self._nodes(await self._async_client.rerank(query, nodes, **self._options()))
        return ranked

    def _nodes(self, result: RerankResult[NodeWithScore]) -> list[NodeWithScore]:
        kept = retrieval_key(self.keep_retrieval_score)
        degraded = {DEGRADED_KEY: result.reason or result.served_by} if result.degraded else {}
        return [
            NodeWithScore(
                node=_noted(ranked.document.node, degraded | ({kept: ranked.document.score} if kept else {})),
                score=ranked.score,
            )
            for ranked in result
        ]

    @contextmanager
    def _reported(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None
    ) -> Iterator[tuple[str, list[NodeWithScore]]]:
        """Tell LlamaIndex's tracers of a call: the query, and a list to fill with the nodes that they are to see."""
        if query_bundle is None:
            raise InvalidRequestError("query_bundle is None: give the query that the nodes are to be ranked by")
        query, ranked = query_bundle.query_str, list[NodeWithScore]()
        model, top_n = self.model or self._client.scorer.name, self.top_n or len(nodes)
        _dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield query, ranked
            event.on_end(payload={EventPayload.NODES: ranked})
        _dispatcher.event(ReRankEndEvent(nodes=ranked))


def _text(node: NodeWithScore) -> str:
    return node.node.get_content(metadata_mode=MetadataMode.EMBED)


def _noted(node: BaseNode, notes: dict[str, Any]) -> BaseNode:
    """The node, or a copy if these notes or those of an earlier reranker make a difference to its metadata."""
    metadata = {key: value for key, value in node.metadata.items() if key != DEGRADED_KEY} | notes
    if metadata == node.metadata:
        return node
    hidden = {
        name: [*(key for key in getattr(node, name) if key not in (DEGRADED_KEY, *notes)), DEGRADED_KEY, *notes]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    hidden = {name: list(dict.fromkeys(keys)) for name, keys in hidden.items()}
    return node.model_copy(update={"metadata": metadata, **hidden})
