"""Documents longer than the model reads: cut by it, or scored as chunks, of which the best stands for the document.

All documents are asked whole first, since only the model knows which fit. Those that it cut are then asked as chunks.
If both answers are of one model, one version and one scorer, their logits compare; else everything is asked once more
in one request, whose logits do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from triton_rerank.core import ranking
from triton_rerank.core.chunk import Span, spans
from triton_rerank.core.scorer import Call, ModelScorer, PairRequest, Scored, Scorer

LongDocuments = Literal["truncate", "chunk"]
T = TypeVar("T", bound=np.generic)
DEFAULT_MAX_CHUNKS = 16
DEFAULT_OVERLAP_TOKENS = 32
_BYTES_PER_TOKEN = 3.0  # fewer than texts have on average, so that a chunk is seldom cut
_MAX_LENGTH = 512  # where neither the call nor the scorer says
_SPECIAL_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Cutting:
    """What to do with documents longer than the model reads.

    Attributes:
        chunks: score them as chunks.
        max_chunks: of one document; what is behind them is not read, and the document is ``truncated``.
        overlap_tokens: that neighbours have in common, about.
    """

    chunks: bool = False
    max_chunks: int = DEFAULT_MAX_CHUNKS
    overlap_tokens: int = DEFAULT_OVERLAP_TOKENS


@dataclass(frozen=True, slots=True)
class _Long:
    """A document that is asked as chunks: its place in the request, spans and texts, and whether they are all of it."""

    place: int
    spans: tuple[Span, ...]
    texts: tuple[bytes, ...]
    complete: bool


async def score(
    scorer: Scorer, request: PairRequest, call: Call, cutting: Cutting
) -> tuple[Scored, Sequence[Span | None] | None]:
    """Ask a scorer for a request, long documents as ``cutting`` says.

    Returns:
        What it said of each document, by its best chunk; and where that chunk is, None for a document that was scored
        whole, None in place of the list if all were.

    Raises:
        RerankError: as `Scorer.score`.
    """
    whole = await scorer.score(request, call)
    if not cutting.chunks or whole.scores is None or not whole.truncated.any():
        return whole, None
    long = _cut(request, whole, await _room(scorer, request, call), cutting)
    if not long:
        return whole, None
    chunks = [text for document in long for text in document.texts]
    asked, rows = _distinct(chunks)
    said = await scorer.score(replace(request, documents=asked), call)
    n = len(request.documents)
    if _compare(whole, said):
        return _chosen(_joined(whole, said), list(range(n)), long, [n + row for row in rows])
    places = {document.place for document in long}
    short = [text for place, text in enumerate(request.documents) if place not in places]
    asked, rows = _distinct([*short, *chunks])
    said = await scorer.score(replace(request, documents=asked), call)
    if said.scores is None:
        return replace(said, truncated=whole.truncated), None
    own = iter(rows)
    first = [0 if place in places else next(own) for place in range(n)]
    return _chosen(said, first, long, list(own))


async def _room(scorer: Scorer, request: PairRequest, call: Call) -> int:
    """Tokens that a document has beside the query."""
    info = await scorer.model_info(call) if isinstance(scorer, ModelScorer) else None
    length = request.max_length or (_MAX_LENGTH if info is None else info.max_length)
    around = _SPECIAL_TOKENS + (0 if info is None else info.prompt_tokens)
    around += int(len((request.instruction or "").encode()) / _BYTES_PER_TOKEN)
    query = min(int(len(request.query) / _BYTES_PER_TOKEN), request.max_query_tokens or length // 2, length // 2)
    return max(1, min(length - query - around, request.max_document_tokens or length))


def _cut(request: PairRequest, whole: Scored, room: int, cutting: Cutting) -> list[_Long]:
    """The documents that the model cut and that are longer than a chunk; a cut of the query alone makes none."""
    found = []
    for place in np.flatnonzero(whole.truncated).tolist():
        text = request.documents[place].decode()
        characters_per_token = _BYTES_PER_TOKEN * len(text) / max(1, len(request.documents[place]))
        size = max(1, int(room * characters_per_token))
        overlap = int(cutting.overlap_tokens * characters_per_token)
        parts = spans(text, size=size, overlap=overlap)
        if len(parts) > 1:
            kept = parts[: cutting.max_chunks]
            texts = tuple(text[start:end].encode() for start, end in kept)
            found.append(_Long(place, kept, texts, len(kept) == len(parts)))
    return found


def _distinct(texts: Sequence[bytes]) -> tuple[tuple[bytes, ...], list[int]]:
    """Different texts, and the place of each text among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return tuple(places), [places[text] for text in texts]


def _compare(one: Scored, other: Scored) -> bool:
    """Are logits of both on one scale, and all of one stage?"""
    same = (one.model, one.model_version, one.served_by) == (other.model, other.model_version, other.served_by)
    plain = all(scored.tiers is None and not scored.stages and scored.scores is not None for scored in (one, other))
    return same and plain and (one.logits is None) == (other.logits is None)


def _joined(one: Scored, other: Scored) -> Scored:
    assert one.scores is not None and other.scores is not None
    return replace(
        one,
        logits=_both(one.logits, other.logits),
        scores=np.concatenate([one.scores, other.scores]),
        truncated=np.concatenate([one.truncated, other.truncated]),
        token_counts=_both(one.token_counts, other.token_counts),
        token_count=one.token_count + other.token_count,
        requests=one.requests + other.requests,
        cached_pairs=one.cached_pairs + other.cached_pairs,
        degraded=one.degraded or other.degraded,
        reason=one.reason or other.reason,
        attempts=(*one.attempts, *other.attempts),
    )


def _both(one: npt.NDArray[T] | None, other: npt.NDArray[T] | None) -> npt.NDArray[T] | None:
    return None if one is None or other is None else np.concatenate([one, other])


def _chosen(
    said: Scored, first: Sequence[int], long: Sequence[_Long], rows: Sequence[int]
) -> tuple[Scored, list[Span | None]]:
    """What was said of documents, of each long one by its best chunk.

    Args:
        said: of documents and chunks.
        first: for each document, its row; any for a long one.
        long: those with chunks.
        rows: of all their chunks in turn.
    """
    keys = said.scores if said.logits is None else said.logits
    assert keys is not None
    ranks: npt.NDArray[np.intp] = np.empty(len(keys), np.intp)
    ranks[ranking.order(keys, said.tiers)] = np.arange(len(keys))
    chosen, best = list(first), list[Span | None]([None] * len(first))
    cut: dict[int, bool] = {}
    left = iter(rows)
    for document in long:
        own = [next(left) for _ in document.spans]
        index = min(range(len(own)), key=lambda place, own=own: ranks[own[place]])  # type: ignore[misc]
        chosen[document.place], best[document.place] = own[index], document.spans[index]
        cut[document.place] = not document.complete or bool(said.truncated[own].any())
    found = ranking.at_rows(said, np.asarray(chosen, np.intp))
    found.truncated[list(cut)] = list(cut.values())
    return found, best
