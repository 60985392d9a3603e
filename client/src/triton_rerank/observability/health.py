"""Can a server rerank? Asked in the order in which things break, and proved by scoring one pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from triton_rerank.client import RerankClient
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import SyncRuntime, run_sync
from triton_rerank.core.scorer import Call
from triton_rerank.errors import RerankError
from triton_rerank.triton.channel import TritonOptions
from triton_rerank.triton.scorer import TritonScorer
from triton_rerank.types import ModelInfo

_QUERY, _DOCUMENT = "how do I make a file smaller?", "gzip shrinks files, so that they take less room."


@dataclass(frozen=True, slots=True)
class Health:
    """What one target said.

    Attributes:
        target: ``host:port``, or a DNS name, of which one server answered.
        model: public model name.
        answers: something there speaks Triton's protocol.
        ready: Triton says that the model is loaded.
        info: what the model is; None if that was not told.
        scoring_s: seconds that one pair took, sent and decoded; None if it was not scored.
        error: what stood in the way; None means healthy.
    """

    target: str
    model: str
    answers: bool = False
    ready: bool = False
    info: ModelInfo | None = None
    scoring_s: float | None = None
    error: RerankError | None = None

    def line(self) -> str:
        """For people."""
        if self.error is not None:
            state = "ready but not scoring" if self.ready else "not ready" if self.answers else "no answer"
            return f"{self.target}  {state}  {type(self.error).__name__}: {' '.join(str(self.error).split())}"
        assert self.info is not None and self.scoring_s is not None
        info = self.info
        return (
            f"{self.target}  healthy  {info.name} version {info.version or '?'}: {info.activation}, {info.precision}, "
            f"max_length {info.max_length}, max_batch_size {info.max_batch_size}; "
            f"a pair took {self.scoring_s * 1e3:.1f} ms"
        )

    def fields(self) -> dict[str, Any]:
        """For programs; ready to become JSON."""
        error = self.error
        return {
            "target": self.target,
            "model": self.model,
            "healthy": error is None,
            "answers": self.answers,
            "ready": self.ready,
            "info": None if self.info is None else asdict(self.info),
            "scoring_s": self.scoring_s,
            "error": None if error is None else type(error).__name__,
            "reason": None if error is None else str(error),
            "exit_code": 0 if error is None else error.exit_code,
        }


def check_health(target: str, model: str, *, timeout_s: float, options: TritonOptions | None = None) -> Health:
    """Ask one target; never raises for what is wrong with it.

    Args:
        target: as for `RerankClient`.
        model: public model name.
        timeout_s: seconds for all questions together.
        options: TLS and headers.
    """
    info, answers, ready = None, False, False
    try:
        scorer = TritonScorer(target, model, options=options)
        with RerankClient(scorer=scorer, timeout_s=timeout_s) as client:
            deadline = Deadline(timeout_s)
            answers = run_sync(scorer.answers(Call(deadline, SyncRuntime())))
            info = client.model_info(timeout_s=deadline.left_s(doing="the model was asked for"))
            ready = client.is_ready(timeout_s=deadline.left_s(doing="readiness was asked"))
            result = client.rerank(_QUERY, [_DOCUMENT], timeout_s=deadline.left_s(doing="a pair was scored"))
    except RerankError as exc:
        return Health(target, model, answers=answers or info is not None, ready=ready, info=info, error=exc)
    return Health(target, model, answers=True, ready=ready, info=info, scoring_s=result.timings.scoring_s)
