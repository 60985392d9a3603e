"""Fakes for tests of code that reranks: real scorers that need no server and fail on demand.

A `FakeScorer` takes the place of the server; validation, ranking, ``top_k``, deadlines and errors are the client's own:

    from triton_rerank import OverloadedError, RerankClient
    from triton_rerank.testing import FakeScorer

    def test_the_best_passage_is_shown_first():
        scorer = FakeScorer({"a dog barks": -1.0, "a cat sleeps": 2.5})
        with RerankClient(scorer=scorer) as client:
            assert my_search(client, "cats")[0] == "a cat sleeps"
        assert scorer.requests[0].query == b"cats"

    def test_a_full_server_shows_the_unranked_list():
        scorer = FakeScorer(error=OverloadedError("queue full"))
        with RerankClient(scorer=scorer) as client:
            assert my_search(client, "cats") == ["a dog barks", "a cat sleeps"]

Set ``scorer.error`` to an error and to None again to let it fail and recover, or give ``outcomes`` for one call after
the other. ``delay_s=math.inf`` is a server that hangs: every call ends with its deadline.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from triton_rerank.core.ranking import activate
from triton_rerank.core.remade import Remade
from triton_rerank.core.scorer import Call, PairRequest, Scored
from triton_rerank.errors import DeadlineExceededError
from triton_rerank.triton.wire import finite
from triton_rerank.types import Activation, ModelInfo


def shared_words(query: str, document: str) -> float:
    """Logit of a fake model: how many different words the two have in common, in any case."""
    return float(len(set(query.lower().split()) & set(document.lower().split())))


class FakeScorer(Remade):
    """Scores pairs by a function or a table, in this process; a word is a token. Safe to share between threads.

    Args:
        logits: function of query and document, or a table document -> logit. A document that the table does not have
            is a KeyError, which no client or chain hides; a logit that is not finite is an InvalidResponseError.
        name: what results, logs and counters call it.
        model: the model that it says it is.
        model_version: what `model_info` and results state.
        activation: "identity" or "sigmoid".
        max_length: longest pair in words; longer ones are ``truncated``, though their logits are not changed.
        max_batch_size: what `model_info` states; nothing is split.
        error: raised by every call; None for none.
        outcomes: one for each of the next `score` calls, an error or None for an answer; ``error`` holds after them.
        delay_s: seconds that every call waits before anything else, until its deadline at most.

    Attributes:
        error, delay_s, model_version: as above; may be set at any time.
        closed: True after `close` or `aclose`.
    """

    def __init__(
        self,
        logits: Callable[[str, str], float] | Mapping[str, float] = shared_words,
        *,
        name: str = "fake",
        model: str = "fake",
        model_version: str = "1",
        activation: Activation = "identity",
        max_length: int = 512,
        max_batch_size: int = 64,
        error: BaseException | None = None,
        outcomes: Iterable[BaseException | None] = (),
        delay_s: float = 0.0,
    ) -> None:
        self.name = name
        self.model = model
        self.model_version = model_version
        self.error = error
        self.delay_s = delay_s
        self.closed = False
        self._logits = logits
        self._activation: Activation = activation
        self._max_length = max_length
        self._max_batch_size = max_batch_size
        self._outcomes = deque(outcomes)
        self._asked: list[tuple[PairRequest, Call]] = []
        self._lock = threading.Lock()

    @property
    def requests(self) -> tuple[PairRequest, ...]:
        """What `score` was asked so far, failures included."""
        with self._lock:
            return tuple(request for request, _ in self._asked)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Deadline and headers of each of `requests`."""
        with self._lock:
            return tuple(call for _, call in self._asked)

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Record, wait, fail or score.

        Raises:
            DeadlineExceededError: the deadline passed during ``delay_s``.
            BaseException: ``error``, or the next of ``outcomes``.
        """
        with self._lock:
            self._asked.append((request, call))
            error = self._outcomes.popleft() if self._outcomes else self.error
        await self._wait(call, error)
        query = request.query.decode()
        documents = [document.decode() for document in request.documents]
        logits = finite(np.fromiter((self._logit(query, document) for document in documents), np.float32))  # (n,)
        kept = min(len(query.split()), request.max_query_tokens or self._max_length)
        lengths = np.array([len(document.split()) for document in documents])
        kept_of_each = np.minimum(lengths, request.max_document_tokens or self._max_length)
        words = kept + kept_of_each
        max_length = min(self._max_length, request.max_length or self._max_length)
        return Scored(
            model=self.model,
            served_by=self.name,
            logits=logits,
            scores=activate(logits, self._activation),
            truncated=(words > max_length) | (kept_of_each < lengths) | (kept < len(query.split())),
            token_count=int(np.minimum(words, max_length).sum()),
            token_counts=np.minimum(words, max_length),
            model_version=self.model_version,
        )

    async def model_info(self, call: Call) -> ModelInfo:
        """What the arguments said; waits and fails as `score` does, ``outcomes`` apart."""
        await self._wait(call, self.error)
        return ModelInfo(
            name=self.model,
            activation=self._activation,
            max_length=self._max_length,
            max_batch_size=self._max_batch_size,
            precision="fp32",
            source="triton_rerank.testing",
            version=self.model_version,
        )

    async def is_ready(self, call: Call) -> bool:
        """False while ``error`` is set, or if ``delay_s`` is longer than the deadline."""
        try:
            await self._wait(call, None)
        except DeadlineExceededError:
            return False
        return self.error is None

    def close(self) -> None:
        """Set ``closed``."""
        self.closed = True

    async def aclose(self) -> None:
        """Set ``closed``."""
        self.closed = True

    async def _wait(self, call: Call, error: BaseException | None) -> None:
        left_s = call.deadline.left_s(doing=f"{self.name!r} was asked")
        if self.delay_s > 0:
            await call.runtime.sleep(min(self.delay_s, left_s))
        if self.delay_s >= left_s:
            raise DeadlineExceededError(f"{self.name!r} did not answer within {left_s:g} s: its delay_s is longer")
        if error is not None:
            raise error.with_traceback(None)  # else each raise would add to the last one's traceback

    def _logit(self, query: str, document: str) -> float:
        if callable(self._logits):
            return self._logits(query, document)
        if document not in self._logits:
            raise KeyError(f"the table of {self.name!r} has no logit for the document {document[:80]!r}")
        return self._logits[document]
