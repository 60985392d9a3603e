"""Haystack: `TritonRanker`, a ranker component."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from triton_rerank.integrations import DEGRADED_KEY, not_installed, retrieval_key

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as exc:
    raise not_installed("haystack", exc) from exc

from triton_rerank.aio import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.contract import DEFAULT_TIMEOUT_S
from triton_rerank.core.numbers import plain
from triton_rerank.core.scorer import Scorer
from triton_rerank.types import RerankResult

# No `from __future__ import annotations` here: Haystack reads the types of the sockets from the annotations.


@component
class TritonRanker:
    """Ranks documents by a cross-encoder.

    Examples:
        >>> pipeline.add_component("ranker", TritonRanker("minilm-l6-demo", target="127.0.0.1:8001", top_k=3))
        >>> pipeline.connect("retriever.documents", "ranker.documents")

    Documents come back as copies, best first, their score replaced, by None where the model that made the order did not
    score the document. Where another than the first choice answered, every document has `DEGRADED_KEY` in its meta,
    with the reason. Unlike Haystack's own rankers it keeps documents of equal id; equal texts are scored once. Scores
    are those of the model's own activation, so there is no ``scale_score``.

    A pipeline in YAML loads with ``Pipeline.loads(text, allowed_modules=["triton_rerank.*"])``. A ``scorer`` cannot be
    written to YAML; of target and model nothing is secret.

    Args:
        model: public model name.
        target: as for `RerankClient`.
        scorer: who orders documents, instead of target and model: a chain, a cascade and so on. ``client.scorer``
            shares the connections of a client that is already there.
        top_k: how many to return; None means all.
        score_threshold: leave out documents with a lower score.
        timeout_s: seconds for a whole call.
        meta_fields_to_embed: meta fields that the model reads before the content; missing and empty ones are left out.
        embedding_separator: stands between them, and before the content.
        max_length: longest pair in tokens; None means the model's own.
        max_query_tokens: most tokens that are kept of the query; None means the model's own rule.
        instruction: what a model with a prompt is told to look for; None means the prompt's own.
        keep_retrieval_score: meta key under which the score that a document came with is kept; True means
            ``retrieval_score``.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        target: str | None = None,
        scorer: Scorer | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        max_length: int | None = None,
        max_query_tokens: int | None = None,
        instruction: str | None = None,
        keep_retrieval_score: bool | str = False,
    ) -> None:
        self.model = model
        self.target = target
        self.scorer = scorer
        self.top_k = plain(top_k)  # YAML takes Python's own numbers only
        self.score_threshold = plain(score_threshold)
        self.timeout_s = plain(timeout_s)
        self.max_length = plain(max_length)
        self.max_query_tokens = plain(max_query_tokens)
        self.instruction = instruction
        self.keep_retrieval_score = keep_retrieval_score
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self._clients: tuple[RerankClient, AsyncRerankClient] | None = None

    def warm_up(self) -> None:
        """Make the clients; a pipeline does this before each run, and nothing is sent.

        Raises:
            ConfigurationError: neither or both of model and scorer.
        """
        self._connected()

    def close(self) -> None:
        """Close the connections of `run`; a later run opens new ones."""
        clients, self._clients = self._clients, None
        if clients is not None:
            clients[0].close()

    async def close_async(self) -> None:
        """Close the connections of `run`, and those of `run_async` in this event loop."""
        clients, self._clients = self._clients, None
        if clients is not None:
            await clients[1].aclose()

    def to_dict(self) -> dict[str, Any]:
        """The component as Haystack serialises it."""
        _, *names = inspect.signature(TritonRanker.__init__).parameters
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TritonRanker":
        """The component from its serialised form."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """Rank.

        Args:
            query: what the user asks.
            documents: what was retrieved; none give none, without a call.
            top_k: how many to return; None means the component's.
            score_threshold: leave out documents with a lower score; None means the component's.

        Returns:
            ``documents``, best first.

        Raises:
            RerankError: as for `RerankClient.rerank`.
        """
        client, _ = self._connected()
        return self._output(client.rerank(query, documents, **self._options(top_k, score_threshold)))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """As `run`; cancelling it cancels what it sent."""
        _, client = self._connected()
        return self._output(await client.rerank(query, documents, **self._options(top_k, score_threshold)))

    def _connected(self) -> tuple[RerankClient, AsyncRerankClient]:
        clients = self._clients
        if clients is None:
            client = RerankClient(self.target, model=self.model, scorer=self.scorer, text_key=self._text)
            clients = self._clients = client, AsyncRerankClient(scorer=client.scorer, text_key=self._text)
        return clients

    def _options(self, top_k: int | None, score_threshold: float | None) -> Mapping[str, Any]:
        return {
            "top_k": self.top_k if top_k is None else top_k,
            "min_score": self.score_threshold if score_threshold is None else score_threshold,
            "timeout_s": self.timeout_s,
            "max_length": self.max_length,
            "max_query_tokens": self.max_query_tokens,
            "instruction": self.instruction,
        }

    def _output(self, result: RerankResult[Document]) -> dict[str, list[Document]]:
        kept = retrieval_key(self.keep_retrieval_score)
        note = {DEGRADED_KEY: result.reason or result.served_by} if result.degraded else {}
        return {
            "documents": [
                replace(
                    ranked.document,
                    score=ranked.score,
                    meta={key: value for key, value in ranked.document.meta.items() if key != DEGRADED_KEY}
                    | note
                    | ({kept: ranked.document.score} if kept else {}),
                )
                for ranked in result
            ]
        }

    def _text(self, document: Document) -> str:
        fields = [str(document.meta[key]) for key in self.meta_fields_to_embed if document.meta.get(key)]
        return self.embedding_separator.join([*fields, document.content or ""])
