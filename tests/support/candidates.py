"""Candidates and rankings for the tests of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from triton_rerank_retrieval import Candidate
from triton_rerank_retrieval.candidates import MODEL_SCORE, ranked


def candidate(id: str, score: float | None = None, *, text: str = "", document: Any = None) -> Candidate[Any]:
    """One with a model's score, or without any."""
    return Candidate(id, text or f"text of {id}", document or {"id": id}, score, MODEL_SCORE)


def ranking(stage: str, *scores: tuple[str, float | None]) -> list[Candidate[Any]]:
    """What a first stage gave: ids with scores, best first."""
    return ranked([candidate(id, score) for id, score in scores], stage)


def ids(candidates: Sequence[Candidate[Any]]) -> list[str]:
    return [one.id for one in candidates]


@st.composite
def rankings(draw: st.DrawFn) -> list[Candidate[Any]]:
    """A ranked list of different ids with falling finite scores."""
    names = draw(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8))
    scores = sorted(draw(st.lists(st.floats(-50, 50), min_size=len(names), max_size=len(names))), reverse=True)
    stage = draw(st.sampled_from(["one", "two"]))
    return ranking(stage, *zip(names, scores, strict=True))
