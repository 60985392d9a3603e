"""What every dialect's request becomes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from triton_rerank_gateway.fields import Fields


@dataclass(frozen=True, slots=True)
class Part:
    """One query with its documents.

    Attributes:
        query: not blank.
        documents: n texts, n at least 1.
    """

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Extras:
    """Optional fields that every dialect understands beside its own.

    Attributes:
        min_score: leave out results below it, on the scale of the answer's scores.
        timeout_s: of the whole request, seconds; None for the configured one.
        return_logits: tell the model's raw output beside each score.
        return_details: tell logit, truncated, best_chunk and token_count of each result.
        max_chunks: score a document that is longer than the model reads as so many chunks at most; None cuts it.
        overlap_tokens: that neighbouring chunks have in common, None for the client's own.
        instruction: for a model with a prompt; None for the model's own.
    """

    min_score: float | None = None
    timeout_s: float | None = None
    return_logits: bool = False
    return_details: bool = False
    max_chunks: int | None = None
    overlap_tokens: int | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A request in our words.

    Attributes:
        parts: one for a ranking, one for each different query where pairs are scored.
        given: documents of a ranking as they came.
        model: name that the caller gave, None for the default.
        top_k: most results, None for all.
        return_documents: give documents back.
        raw_scores: the answer's scores are logits.
        truncate: False: a pair that does not fit the model is an error.
        max_query_tokens: longest query, tokens; None for the model's own rule.
        max_document_tokens: most tokens read of each document, None for as many as the model has room for.
        priority: 0 goes first among the waiting requests of one key.
        places: for scored pairs, the part and the index in it of each pair in the order of the request.
        extras: optional fields of ours.
    """

    parts: tuple[Part, ...]
    given: tuple[Any, ...] = ()
    model: str | None = None
    top_k: int | None = None
    return_documents: bool = False
    raw_scores: bool = False
    truncate: bool = True
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    priority: int = 0
    places: tuple[tuple[int, int], ...] = ()
    extras: Extras = field(default_factory=Extras)

    @property
    def n_pairs(self) -> int:
        """Pairs of query and document."""
        return sum(len(part.documents) for part in self.parts)


def read_extras(body: Fields) -> Extras:
    """The optional fields of ours.

    Raises:
        GatewayError: one is not what it must be.
    """
    timeout_ms = body.whole("timeout_ms")
    return Extras(
        min_score=body.number("min_score"),
        timeout_s=None if timeout_ms is None else timeout_ms / 1000,
        return_logits=body.flag("return_logits"),
        return_details=body.flag("return_details"),
        max_chunks=body.count("max_chunks_per_doc"),
        overlap_tokens=body.whole("overlap_tokens", least=0),
        instruction=body.text("instruction"),
    )


def pairs(queries: Sequence[str], documents: Sequence[str]) -> tuple[tuple[Part, ...], tuple[tuple[int, int], ...]]:
    """Parts and places of pairs that are scored each for itself: equal queries share a part."""
    numbers = {query: number for number, query in enumerate(dict.fromkeys(queries))}
    texts: list[list[str]] = [[] for _ in numbers]
    places = []
    for query, document in zip(queries, documents, strict=True):
        part = numbers[query]
        places.append((part, len(texts[part])))
        texts[part].append(document)
    return tuple(Part(query, tuple(texts[number])) for query, number in numbers.items()), tuple(places)
