"""Which dialect a path speaks; where several share one, the body decides. Pure."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from triton_rerank_gateway.dialects.base import Dialect
from triton_rerank_gateway.dialects.cohere import COHERE_V1, COHERE_V2
from triton_rerank_gateway.dialects.infinity import INFINITY
from triton_rerank_gateway.dialects.jina import JINA
from triton_rerank_gateway.dialects.nim import NIM
from triton_rerank_gateway.dialects.tei import TEI, TEI_PREDICT
from triton_rerank_gateway.dialects.v1_rerank import V1_RERANK
from triton_rerank_gateway.dialects.vllm import VLLM, VLLM_SCORE
from triton_rerank_gateway.dialects.voyage import JINA_OR_VOYAGE, VOYAGE
from triton_rerank_gateway.dialects.xinference import XINFERENCE


@dataclass(frozen=True)
class Route:
    """One path to POST to.

    Attributes:
        path: as routed; `{model}` is the model's name.
        dialect: spoken here, unless the body is another's.
        shared: other dialects come here too, and are told by their bodies.
    """

    path: str
    dialect: Dialect
    shared: bool = False

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """All that may come by this way."""
        return (self.dialect, *(dialect for _, dialect in _SIGNS)) if self.shared else (self.dialect,)

    def tell(self, body: Container[str]) -> Dialect:
        """The dialect of a request."""
        return _tell(self.dialect, body) if self.shared else self.dialect


def _tell(default: Dialect, body: Container[str]) -> Dialect:
    for names, dialect in _SIGNS:
        if any(name in body for name in names):
            return dialect
    asks_both = "return_documents" in body and "top_n" not in body
    return JINA_OR_VOYAGE if default is V1_RERANK and asks_both else default


# Fields that only one dialect has, in the order in which they are looked for.
_SIGNS = (
    (("texts",), TEI),
    (("passages",), NIM),
    (("top_k", "truncation"), VOYAGE),
    (("raw_scores",), INFINITY),
)


def _under(prefix: str, dialect: Dialect, *paths: str) -> list[Route]:
    return [Route(f"/{prefix}{path}", dialect) for path in paths]


_V1 = ("/rerank", "/v1/rerank")
# The last two of the first lines are what today's Cohere SDKs make of a base URL with /v1, which old ones want.
ROUTES: tuple[Route, ...] = (
    Route("/rerank", V1_RERANK, shared=True),
    Route("/v1/rerank", V1_RERANK, shared=True),
    Route("/v2/rerank", COHERE_V2, shared=True),
    Route("/v1/v1/rerank", V1_RERANK, shared=True),
    Route("/v1/v2/rerank", COHERE_V2, shared=True),
    Route("/predict", TEI_PREDICT),
    Route("/score", VLLM_SCORE),
    Route("/v1/score", VLLM_SCORE),
    Route("/v1/ranking", NIM),
    Route("/ranking", NIM),
    Route("/reranking", NIM),
    Route("/v1/reranking", NIM),
    Route("/v1/retrieval/{model:path}/reranking", NIM),
    *_under("cohere", COHERE_V1, *_V1, "/v1/v1/rerank"),
    *_under("cohere", COHERE_V2, "/v2/rerank", "/v1/v2/rerank"),
    *_under("jina", JINA, *_V1),
    *_under("voyage", VOYAGE, *_V1),
    *_under("tei", TEI, "/rerank"),
    *_under("tei", TEI_PREDICT, "/predict"),
    *_under("infinity", INFINITY, *_V1),
    *_under("vllm", VLLM, *_V1, "/v2/rerank"),
    *_under("vllm", VLLM_SCORE, "/score", "/v1/score"),
    *_under("xinference", XINFERENCE, *_V1),
    *_under("nim", NIM, "/v1/ranking", "/ranking"),
)
