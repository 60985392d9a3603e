"""What a reranking call returns: frozen data, no behaviour beyond reading it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Activation = Literal["identity", "sigmoid"]


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document with its place in the caller's list and what the model said of it.

    Attributes:
        index: position in the caller's list, from 0.
        document: the text, as the caller gave it.
        score: the logit after the model's own activation (sigmoid: 0 to 1; identity: unbounded).
        logit: raw model output, a float32 value; the order is made from this, never from ``score``.
        truncated: True if the query or this document was cut to fit the model's ``max_length``.
    """

    index: int
    document: str
    score: float
    logit: float
    truncated: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call consumed.

    Attributes:
        pairs: query-document pairs scored.
        token_count: tokens the model read, special tokens included, padding not.
    """

    pairs: int
    token_count: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a call went, in seconds, on the client's clock.

    Attributes:
        total_s: the whole call.
        scoring_s: from the first byte sent to the last answer decoded, all sub-requests.
        requests: sub-requests that the list was split into.
    """

    total_s: float
    scoring_s: float
    requests: int


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Documents, best first. Iterates, indexes and measures like a tuple of `RankedDocument`.

    Attributes:
        documents: best first; equal logits keep the caller's order.
        model: the model that answered.
        usage: pairs and tokens of the whole request, before ``top_k``.
        timings: seconds.
    """

    documents: tuple[RankedDocument, ...]
    model: str
    usage: Usage
    timings: Timings

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, rank: int) -> RankedDocument:
        return self.documents[rank]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says of a model; read from its config, never assumed.

    Attributes:
        name: public model name, the ensemble's.
        activation: how a logit becomes a score.
        max_length: longest pair in tokens, special tokens included.
        max_batch_size: most pairs in one request to the server.
        precision: "fp32", "fp16" or "int8".
        source: where the weights came from.
    """

    name: str
    activation: Activation
    max_length: int
    max_batch_size: int
    precision: str
    source: str
