"""Language models behind an endpoint in OpenAI's form. Needs ``pip install 'triton-rerank-retrieval[llm]'``."""

from triton_rerank_retrieval.llm.answer import Answer, answer, read, stream
from triton_rerank_retrieval.llm.endpoint import Endpoint, openai_embedder
from triton_rerank_retrieval.llm.scorers import ListwiseScorer, PointwiseScorer

__all__ = ["Answer", "Endpoint", "ListwiseScorer", "PointwiseScorer", "answer", "openai_embedder", "read", "stream"]
