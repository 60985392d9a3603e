"""The way from documents to an answer around a reranker: retrieve, fuse, rerank, rules, diversity, context.

What needs an extra stands in a module of its own: ``first_stages.bm25``, ``first_stages.dense``, ``llm``, ``eval``.
"""

from triton_rerank_retrieval.candidates import Candidate, Feedback, Filter, LeftOut, Outcome, Retriever, Said, Step
from triton_rerank_retrieval.context import Citations, Context, citations, pack
from triton_rerank_retrieval.corpus import Corpus
from triton_rerank_retrieval.diversity import (
    MaximalMarginalRelevance,
    NearDuplicates,
    PerSource,
    by_embeddings,
    token_overlap,
)
from triton_rerank_retrieval.files import IndexFileError
from triton_rerank_retrieval.first_stages.embedder import Embedder, sentence_transformer
from triton_rerank_retrieval.first_stages.foreign import langchain, llama_index, of_callable
from triton_rerank_retrieval.fusion import Fusion, ReciprocalRank, WeightedZ
from triton_rerank_retrieval.pipeline import Pipeline, Retrieved
from triton_rerank_retrieval.routing import LexicalScorer, RoutedScorer, Router, scorer_for
from triton_rerank_retrieval.rules import (
    Boost,
    Change,
    Drop,
    Only,
    Recency,
    Rule,
    Rules,
    Safety,
    Threshold,
    with_context,
)
from triton_rerank_retrieval.service import Request, RerankService

__all__ = [
    "Boost",
    "Candidate",
    "Change",
    "Citations",
    "Context",
    "Corpus",
    "Drop",
    "Embedder",
    "Feedback",
    "Filter",
    "Fusion",
    "IndexFileError",
    "LeftOut",
    "LexicalScorer",
    "MaximalMarginalRelevance",
    "NearDuplicates",
    "Only",
    "Outcome",
    "PerSource",
    "Pipeline",
    "Recency",
    "ReciprocalRank",
    "Request",
    "RerankService",
    "Retrieved",
    "Retriever",
    "RoutedScorer",
    "Router",
    "Rule",
    "Rules",
    "Safety",
    "Said",
    "Step",
    "Threshold",
    "WeightedZ",
    "by_embeddings",
    "citations",
    "langchain",
    "llama_index",
    "of_callable",
    "pack",
    "scorer_for",
    "sentence_transformer",
    "token_overlap",
    "with_context",
]
