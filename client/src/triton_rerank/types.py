"""What a reranking call returns: frozen data, no behaviour beyond reading it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Generic, Literal, TypeVar

Activation = Literal["identity", "sigmoid"]
Confidence = Literal["high", "medium", "low"]
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class StageScore:
    """What one stage of a cascade said of one document.

    Attributes:
        model: the stage's model.
        score: after that model's activation; stages do not share a scale.
        logit: the model's raw output, None where it gives none.
    """

    model: str
    score: float
    logit: float | None


@dataclass(frozen=True, slots=True, init=False)
class RankedDocument(Generic[D]):
    """One document with its place in the caller's list and what the model said of it.

    Attributes:
        index: position in the caller's list, from 0.
        document: the very object that the caller gave.
        score: the logit after the model's own activation (sigmoid: 0 to 1; identity: unbounded). None where the model
            that made the order did not score this document: in the first stage's order, and after a cascade's ``keep``.
        logit: raw model output, a float32 value; the order is made from this, never from ``score``. None where
            ``score`` is, and from hosted models, which tell scores only.
        truncated: True if the query or this document was cut to fit the model's ``max_length``.
        confidence: band of the score, None unless the caller gave thresholds for the model that answered.
        stages: in a cascade, what each stage said of this document, first stage first.
        best_chunk: start and end, in characters, of the part that the score is of, where a long document was scored as
            chunks; None for one that was scored whole.
        token_count: tokens of the pair as the model read it, after the cut, special tokens included, padding not; of
            the pair with the best chunk where the document was scored as chunks. None from hosted models and from no
            model.
    """

    index: int
    document: D
    score: float | None
    logit: float | None
    truncated: bool
    confidence: Confidence | None = None
    stages: tuple[StageScore, ...] = ()
    best_chunk: tuple[int, int] | None = None
    token_count: int | None = None

    def __init__(
        self,
        index: int,
        document: D,
        score: float | None,
        logit: float | None,
        truncated: bool,
        confidence: Confidence | None = None,
        stages: tuple[StageScore, ...] = (),
        best_chunk: tuple[int, int] | None = None,
        token_count: int | None = None,
    ) -> None:
        _set_index(self, index)
        _set_document(self, document)
        _set_score(self, score)
        _set_logit(self, logit)
        _set_truncated(self, truncated)
        _set_confidence(self, confidence)
        _set_stages(self, stages)
        _set_best_chunk(self, best_chunk)
        _set_token_count(self, token_count)


# The constructor that dataclasses makes for a frozen class takes twice the time, and a result has many of these.
(
    _set_index,
    _set_document,
    _set_score,
    _set_logit,
    _set_truncated,
    _set_confidence,
    _set_stages,
    _set_best_chunk,
    _set_token_count,
) = (getattr(RankedDocument, field.name).__set__ for field in fields(RankedDocument))


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call consumed.

    Attributes:
        pairs: documents of the request.
        token_count: tokens that models read for this call, special tokens included, padding not; duplicates of a
            document are read once, and cached pairs not at all. 0 from hosted models that do not tell.
        cached_pairs: distinct pairs whose logits came from the cache.
    """

    pairs: int
    token_count: int
    cached_pairs: int = 0


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
class Attempt:
    """One scorer that did not answer a call.

    Attributes:
        scorer: its name.
        error: class name of the error, "Skipped" if it was not asked because it kept failing, "DeadlineExceededError"
            with ``elapsed_s`` 0 if no time was left to ask it.
        reason: the error's message.
        elapsed_s: seconds that it took.
    """

    scorer: str
    error: str
    reason: str
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class RerankResult(Generic[D]):
    """Documents, best first. Iterates, indexes and measures like a tuple of `RankedDocument`.

    Attributes:
        documents: best first; equal logits keep the caller's order.
        model: the model that made the order; where there were no documents, the scorer's if it has one single model.
        model_version: its version as the server states it, "" where there is none.
        served_by: name of the scorer that answered.
        degraded: True if another than the first choice answered; the order may be worse.
        reason: why it is degraded, else None.
        usage: pairs and tokens of the whole request, before ``top_k``.
        timings: seconds.
        attempts: scorers that did not answer before this one did.
    """

    documents: tuple[RankedDocument[D], ...]
    model: str
    usage: Usage
    timings: Timings
    model_version: str = ""
    served_by: str = ""
    degraded: bool = False
    reason: str | None = None
    attempts: tuple[Attempt, ...] = ()

    def __iter__(self) -> Iterator[RankedDocument[D]]:
        return iter(self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, rank: int) -> RankedDocument[D]:
        return self.documents[rank]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says of a model; read from its config, never assumed.

    Attributes:
        name: public model name, the ensemble's.
        activation: how a logit becomes a score.
        max_length: longest pair in tokens, special tokens included.
        max_batch_size: most pairs in one request to the server.
        precision: "fp32", "bf16", "fp16" or "int8".
        source: where the weights came from.
        version: the version that answers, "" if the config does not say.
        length_ladder: padded lengths in tokens, ascending; a request is padded to the first that holds it.
        queue_bounded: requests that wait too long in the server, or are one too many, are refused.
        prompt_tokens: about how many tokens of a pair the model's prompt takes, rather too many; 0 where there is none.
        takes_instruction: the prompt has a place for the instruction of a request.
    """

    name: str
    activation: Activation
    max_length: int
    max_batch_size: int
    precision: str
    source: str
    version: str = ""
    length_ladder: tuple[int, ...] = ()
    queue_bounded: bool = False
    prompt_tokens: int = 0
    takes_instruction: bool = False
