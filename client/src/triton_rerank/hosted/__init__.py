"""Scorers of hosted rerankers; they need ``pip install 'triton-rerank[hosted]'``."""

from triton_rerank.hosted.cohere import CohereScorer
from triton_rerank.hosted.jina import JinaScorer
from triton_rerank.hosted.voyage import VoyageScorer

__all__ = ["CohereScorer", "JinaScorer", "VoyageScorer"]
