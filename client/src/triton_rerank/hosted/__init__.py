"""Scorers of hosted rerankers; they need ``pip install 'triton-rerank[hosted]'``."""

from triton_rerank.hosted.providers import CohereScorer, JinaScorer, VoyageScorer

__all__ = ["CohereScorer", "JinaScorer", "VoyageScorer"]
