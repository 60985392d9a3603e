"""What a cache holds: the pairs of one model between two changes of it. Memory only; a lock, and nothing that waits."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from triton_rerank.core.deadline import Clock
from triton_rerank.core.scorer import PairRequest, Scored
from triton_rerank.errors import ConfigurationError
from triton_rerank.types import ModelInfo

_KEY_BYTES = 16  # of 10^5 pairs, two share a key with a chance of 10^-29


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """What a cache did since it was made.

    Attributes:
        hits: pairs answered from the cache.
        misses: pairs that the scorer behind it was asked for.
        evictions: pairs that made room for others.
        drops: pairs that went because the model changed.
        size: pairs in it now.
        max_pairs: most that it holds.
    """

    hits: int
    misses: int
    evictions: int
    drops: int
    size: int
    max_pairs: int


@dataclass(eq=False, slots=True)
class Generation:
    """A model between two changes of it; compared by identity.

    Attributes:
        info: read before any pair of this generation was scored, so that a change since then shows in the next one.
        answered: model and version as its first answer stated them, None before that.
    """

    info: ModelInfo
    answered: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What was here of n pairs.

    Attributes:
        hit: bool ``(n,)``.
        logits: float32 ``(n,)``, 0 where not hit.
        truncated: bool ``(n,)``, False where not hit.
        token_counts: int ``(n,)``, -1 where not hit, and where the scorer told none.
    """

    hit: npt.NDArray[np.bool_]
    logits: npt.NDArray[np.float32]
    truncated: npt.NDArray[np.bool_]
    token_counts: npt.NDArray[np.intp]


@dataclass(eq=False, slots=True)
class Flight:
    """Pairs that one call asks the model for; calls that miss no others wait for it in place of asking too.

    Attributes:
        keys: of its pairs, those that were no other flight's before.
        thread: that the call runs in.
        waiting: one for each call that waits; done as soon as the flight is over, whatever came of it.
    """

    keys: list[bytes]
    thread: int
    waiting: list[Future[None]] = field(default_factory=list)


class PairMemory:
    """The pairs of one generation; every method holds the lock for its own time only, none waits."""

    def __init__(self, max_pairs: int, ttl_s: float, clock: Clock) -> None:
        try:
            from cachetools import TTLCache
        except ImportError as exc:
            raise ConfigurationError("CachedScorer needs cachetools: pip install 'triton-rerank[cache]'") from exc
        self._max_pairs = max_pairs
        self._clock = clock
        self._lock = threading.Lock()
        self._pairs: TTLCache[bytes, tuple[float, bool, int]] = TTLCache(max_pairs, ttl_s, timer=clock)
        self._checked_at = -math.inf
        self._away = False
        self._flights: dict[bytes, Flight] = {}
        self._hits = self._misses = self._evictions = self._drops = 0
        self.generation: Generation | None = None

    def begin(self, info: ModelInfo) -> Generation:
        """The generation of a model's info: the present one if nothing changed, else a new, empty one."""
        with self._lock:
            self._checked_at = self._clock()
            if self.generation is None or self.generation.info != info:
                self._drop()
                self.generation = Generation(info)
            return self.generation

    def find(self, generation: Generation, request: PairRequest) -> Found:
        """What is here of a request; nothing if another generation has begun."""
        n = len(request.documents)
        found = Found(np.zeros(n, np.bool_), np.zeros(n, np.float32), np.zeros(n, np.bool_), np.full(n, -1))
        if generation.answered is None:
            return found
        keys = list(_keys(request))
        with self._lock:
            pairs = [self._pairs.get(key) for key in keys] if self.generation is generation else []
        for row, pair in enumerate(pairs):
            if pair is not None:
                found.hit[row] = True
                found.logits[row], found.truncated[row], found.token_counts[row] = pair
        return found

    def keep(self, generation: Generation, request: PairRequest, answer: Scored) -> bool:
        """Keep an answer.

        Returns:
            False if it is of another generation, which drops everything, or is not one to keep.
        """
        if not _is_sound(answer, len(request.documents)):
            return False
        assert answer.logits is not None
        answered = (answer.model, answer.model_version)
        versions = {generation.info.version, answer.model_version}
        counts = np.full(len(answer.logits), -1) if answer.token_counts is None else answer.token_counts
        pairs = zip(answer.logits.tolist(), answer.truncated.tolist(), counts.tolist(), strict=True)
        entries = list(zip(_keys(request), pairs, strict=True))
        with self._lock:
            if self.generation is not generation:
                return False
            # scores of what is here are made by the activation that the info tells, which is its own version's
            other = "" not in versions and len(versions) > 1
            if other or generation.answered not in (None, answered):
                self._drop()
                return False
            generation.answered = answered
            for key, pair in entries:
                self._evictions += key not in self._pairs and len(self._pairs) >= self._max_pairs
                self._pairs[key] = pair
            return True

    def board(self, request: PairRequest, *, is_async: bool, may_wait: bool) -> Flight | list[Future[None]]:
        """A flight for these pairs; or, if others are asking for all of them, what to wait for.

        Args:
            request: the pairs that are missing.
            is_async: the call runs in an event loop of this thread.
            may_wait: False wants a flight in any case.
        """
        keys, here = list(_keys(request)), threading.get_ident()
        with self._lock:
            others = {id(flight): flight for flight in map(self._flights.get, keys) if flight is not None}
            # one that blocks must not wait for its own thread, for instance for the event loop in which it is called
            reachable = is_async or all(flight.thread != here for flight in others.values())
            if may_wait and reachable and all(key in self._flights for key in keys):
                waits = [Future[None]() for _ in others]
                for wait, flight in zip(waits, others.values(), strict=True):
                    flight.waiting.append(wait)
                return waits
            own = Flight([key for key in keys if key not in self._flights], here)
            self._flights |= dict.fromkeys(own.keys, own)
            return own

    def land(self, flight: Flight) -> None:
        """The flight is over: what it brought is here, and who waited for it may look."""
        with self._lock:
            for key in flight.keys:
                del self._flights[key]
        for wait in flight.waiting:
            if wait.set_running_or_notify_cancel():
                wait.set_result(None)

    def count(self, *, hits: int = 0, misses: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self._hits += hits
            self._misses += misses

    def claim_check(self, after_s: float) -> bool:
        """True for the one caller that must look at the model now, others go on meanwhile."""
        with self._lock:
            now = self._clock()
            due = now - self._checked_at >= after_s
            if due:
                self._checked_at = now
            return due

    def unclaim_check(self) -> None:
        """The next caller must look at the model again."""
        with self._lock:
            self._checked_at = -math.inf

    def note_away(self, away: bool) -> bool:
        """Note whether the model can be asked; True if that changed."""
        with self._lock:
            changed = away is not self._away
            self._away = away
            return changed

    def counters(self) -> CacheCounters:
        """What happened so far."""
        with self._lock:
            return CacheCounters(
                self._hits, self._misses, self._evictions, self._drops, len(self._pairs), self._max_pairs
            )

    def clear(self) -> None:
        """Forget every pair and the generation."""
        with self._lock:
            self._pairs.clear()
            self.generation = None

    def _drop(self) -> None:
        self._drops += len(self._pairs)
        self._pairs.clear()
        self.generation = None


def _is_sound(answer: Scored, n_documents: int) -> bool:
    """Whole, from the model itself, and finite."""
    logits = answer.logits
    if answer.degraded or logits is None or not logits.shape == answer.truncated.shape == (n_documents,):
        return False
    return bool(np.isfinite(logits).all())


def _keys(request: PairRequest) -> Iterator[bytes]:
    """Digest of each pair, within one generation. Lengths stand before texts, so that no two pairs read the same."""
    prefix = blake2b(digest_size=_KEY_BYTES)
    bounds = f"{request.max_length} {request.max_query_tokens} {request.max_document_tokens}"
    told = b"" if request.instruction is None else request.instruction.encode()
    for part in (bounds.encode(), told, request.query):
        prefix.update(len(part).to_bytes(8, "little") + part)
    for document in request.documents:
        digest = prefix.copy()
        digest.update(len(document).to_bytes(8, "little") + document)
        yield digest.digest()
