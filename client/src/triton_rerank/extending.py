"""What code beside the client builds on: a scorer of one's own, or a pipeline that waits as the clients do.

A scorer is a class with the four methods of `triton_rerank.Scorer`; it gets a `PairRequest` and a `Call`, and gives a
`Scored`. What waits does so through a `Runtime`, so that one coroutine serves sync callers (`run_sync` under a
`SyncRuntime`) and async ones (awaited under an `AsyncRuntime`).
"""

from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime, Runtime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, PairRequest, Scored

__all__ = ["AsyncRuntime", "Call", "Deadline", "PairRequest", "Runtime", "Scored", "SyncRuntime", "run_sync"]
