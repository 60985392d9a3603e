"""Remembers the logits of pairs, so that a document which comes back for the same query is not scored again."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from triton_rerank.cache.memory import CacheCounters, Flight, Found, Generation, PairMemory
from triton_rerank.core.deadline import Clock
from triton_rerank.core.numbers import real, whole
from triton_rerank.core.ranking import activate
from triton_rerank.core.scorer import Around, Call, ModelScorer, PairRequest, Scored, in_time
from triton_rerank.errors import ConfigurationError, RerankError
from triton_rerank.types import ModelInfo

__all__ = ["CacheCounters", "CachedScorer"]

_CHECK_TIMEOUT_S = 1.0  # and at most half of what is left: hits wait this long for a server that does not answer
logger = logging.getLogger("triton_rerank")


class CachedScorer(Around):
    """Answers pairs from memory, and asks ``scorer`` for the others only.

    Keeps a float32 logit, the truncated flag and the number of tokens of each pair, under a digest of the three
    ``max_`` lengths, query and document, of one version of the model at a time; no text is kept. A pair goes
    ``ttl_s`` after it was scored, or when ``max_pairs`` are there and it is the one least recently used. A pair takes
    under 400 bytes (measured), so the default takes 40 MB at most.

    - **One answer, one version.** What was asked for is merged with what was here only if the same version gave both.
      Else everything is dropped and the whole request is asked anew, within its deadline.
    - **A reload empties it.** Before the cache is used, the model's config is read again if that was last done more
      than ``revalidate_s`` ago; if anything in it changed, everything is dropped. One request does this, and waits for
      it 1 s or half its time at most; others go on meanwhile. For up to ``revalidate_s`` after a reload, then, a
      request that is here completely gets the old version's answer. A model whose files were written over by hand,
      under the same version and source, looks the same from outside: call `clear`.
    - **The server is away** (an error that falls back: gone, frozen, full, model not ready): a request that is here
      completely is answered from here for as long as ``ttl_s`` lasts. The same version gives the same logits, so this
      is no degraded result; the log says it at WARNING when it begins and when it ends. Any other request gets the
      server's error. A config that cannot be read because client and server do not fit is an error for all.
    - An int8 model quantises the pairs of a batch together, so that its logit of a pair differs a little from batch to
      batch; the one that is kept is what the model said in the batch of its time.
    - Calls that come at once with the same query and documents ask once: where all that a call misses is being asked
      for, it waits for that, until its own deadline, and asks itself if nothing came of it. A call that misses more
      asks for all that it misses at once, since waiting first would make it slower. Headers of a call are no part of
      the key.

    Args:
        scorer: of one model; a chain or a cascade has several: put a cache around each scorer in it.
        max_pairs: at least 1.
        ttl_s: seconds that a pair is kept, above 0.
        revalidate_s: seconds, at least 0, which means every time.
        clock: monotonic seconds.
        name: what results, logs and counters call it; None means the scorer's own.

    Raises:
        ConfigurationError: a number is out of bounds, ``scorer`` is not of one model, or cachetools is missing.
    """

    def __init__(
        self,
        scorer: ModelScorer,
        *,
        max_pairs: int = 100_000,
        ttl_s: float = 3600.0,
        revalidate_s: float = 5.0,
        clock: Clock = time.monotonic,
        name: str | None = None,
    ) -> None:
        if not isinstance(scorer, ModelScorer):
            raise ConfigurationError(
                f"scorer is a {type(scorer).__name__}, which has no model_info: a cache must know which version of "
                "which model answers; put one around each scorer of a chain or cascade"
            )
        super().__init__(scorer, name)
        must = "a finite number of seconds"
        self._revalidate_s = real("revalidate_s", revalidate_s, least=0, must=f"{must} at least 0")
        max_pairs = whole("max_pairs", max_pairs, must="a whole number from 1")
        ttl_s = real("ttl_s", ttl_s, least=0, above=True, must=f"{must} above 0")
        self._memory = PairMemory(max_pairs, ttl_s, clock)

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Look the pairs up, and ask for those that are missing.

        Returns:
            ``cached_pairs`` from here; ``token_count`` and ``requests`` are the scorer's, 0 if it was not asked.

        Raises:
            RerankError: the scorer's own.
        """
        for may_wait in (True, False):
            generation, found = await self._look(request, call)
            if found.hit.all():
                return self._remembered(generation, found)
            missing = _missing(request, found)
            boarded = self._memory.board(missing, is_async=call.runtime.is_async, may_wait=may_wait)
            if isinstance(boarded, Flight):
                break
            for flight in boarded:  # over when the call that asks has ended, well or not
                await in_time(flight, call, doing="another call had the same pairs scored")
        assert isinstance(boarded, Flight)
        try:
            return await self._complete(generation, found, request, call)
        finally:
            self._memory.land(boarded)

    async def _look(self, request: PairRequest, call: Call) -> tuple[Generation, Found]:
        """What is here of a request, of the model as it is now."""
        generation = await self._generation(call)
        found = self._memory.find(generation, request)
        if found.hit.any() and (checked := await self._check(generation, call)) is not generation:
            generation, found = checked, self._memory.find(checked, request)
        return generation, found

    async def _complete(self, generation: Generation, found: Found, request: PairRequest, call: Call) -> Scored:
        """The answer of a request of which something is missing."""
        missing = np.flatnonzero(~found.hit)
        answer, kept = await self._ask(generation, _missing(request, found), call)
        if not found.hit.any():
            return replace(answer, served_by=self.name)
        if kept:
            return self._merge(generation, found, missing, answer)
        whole, _ = await self._ask(await self._generation(call), request, call)
        return replace(
            whole,
            served_by=self.name,
            token_count=answer.token_count + whole.token_count,
            requests=answer.requests + whole.requests,
        )

    async def model_info(self, call: Call) -> ModelInfo:
        """Ask the scorer; drop everything if the model changed."""
        info = await super().model_info(call)
        self._memory.begin(info)
        return info

    def counters(self) -> CacheCounters:
        """What it did so far."""
        return self._memory.counters()

    def clear(self) -> None:
        """Forget every pair. What is being scored now is not kept either."""
        self._memory.clear()

    async def _generation(self, call: Call) -> Generation:
        return self._memory.generation or self._memory.begin(await super().model_info(call))

    async def _check(self, generation: Generation, call: Call) -> Generation:
        """The generation that holds now: another one if the model changed."""
        if not self._memory.claim_check(self._revalidate_s):
            return generation
        left_s = call.deadline.left_s(doing="the model was checked")
        deadline = call.deadline.part(min(0.5, _CHECK_TIMEOUT_S / left_s))
        try:
            info = await super().model_info(replace(call, deadline=deadline))
        except RerankError as error:
            if not error.falls_back:
                self._memory.unclaim_check()
                raise
            if self._memory.note_away(True):
                logger.warning("%s: answers cached pairs only, its model cannot be asked: %s", self.name, error)
            return generation
        if self._memory.note_away(False):
            logger.warning("%s: its model can be asked again", self.name)
        return self._memory.begin(info)

    async def _ask(self, generation: Generation, request: PairRequest, call: Call) -> tuple[Scored, bool]:
        """The scorer's answer, and whether it was of this generation and so was kept."""
        self._memory.count(misses=len(request.documents))
        answer = await self._scorer.score(request, call)
        return answer, self._memory.keep(generation, request, answer)

    def _remembered(self, generation: Generation, found: Found) -> Scored:
        assert generation.answered is not None  # else nothing would have been found
        model, version = generation.answered
        self._memory.count(hits=found.hit.size)
        return Scored(
            model=model,
            served_by=self.name,
            logits=found.logits,
            scores=activate(found.logits, generation.info.activation),
            truncated=found.truncated,
            token_count=0,
            token_counts=_known(found.token_counts),
            model_version=version,
            requests=0,
            cached_pairs=found.hit.size,
        )

    def _merge(self, generation: Generation, found: Found, missing: npt.NDArray[np.intp], answer: Scored) -> Scored:
        hits = found.hit.size - missing.size
        self._memory.count(hits=hits)
        found.logits[missing] = answer.logits
        found.truncated[missing] = answer.truncated
        found.token_counts[missing] = -1 if answer.token_counts is None else answer.token_counts
        return replace(
            answer,
            served_by=self.name,
            logits=found.logits,
            scores=activate(found.logits, generation.info.activation),
            truncated=found.truncated,
            token_counts=_known(found.token_counts),
            cached_pairs=hits,
        )


def _known(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.intp] | None:
    return None if (counts < 0).any() else counts


def _missing(request: PairRequest, found: Found) -> PairRequest:
    """The request without what was here."""
    rows = np.flatnonzero(~found.hit).tolist()
    return replace(request, documents=tuple(request.documents[row] for row in rows))
