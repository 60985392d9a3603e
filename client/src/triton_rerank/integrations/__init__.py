"""The client as a component of other frameworks, each in a module of its own behind the extra of its name.

All of them keep the documents' order, number and duplicates as `RerankClient.rerank` returns them, hand back copies so
that the caller's metadata stays as it was, and raise the client's own errors.

Attributes:
    DEGRADED_KEY: metadata key that every document of a degraded result has, and no other. Its value says why, and names
        servers: a log's business, not an end user's.
    RETRIEVAL_SCORE_KEY: metadata key for the score that a document came with, where ``keep_retrieval_score`` is True.
"""

from __future__ import annotations

DEGRADED_KEY = "rerank_degraded"
RETRIEVAL_SCORE_KEY = "retrieval_score"  # LlamaIndex's own name


def retrieval_key(keep: bool | str) -> str | None:
    """The metadata key of ``keep_retrieval_score``: a name of the caller's, the usual one for True, none for False."""
    return (RETRIEVAL_SCORE_KEY if keep else None) if isinstance(keep, bool) else keep


def not_installed(extra: str, error: ImportError) -> ModuleNotFoundError:
    """What to raise where a framework cannot be imported."""
    return ModuleNotFoundError(
        f"triton_rerank.integrations needs its framework ({error}): pip install 'triton-rerank[{extra}]'",
        name=error.name,
    )
