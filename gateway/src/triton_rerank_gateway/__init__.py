"""HTTP in front of served rerankers: every dialect that rerank clients speak, over `triton_rerank`."""

from triton_rerank_gateway.gateway import Gateway
from triton_rerank_gateway.http.app import make_app
from triton_rerank_gateway.settings import Settings

__all__ = ["Gateway", "Settings", "make_app"]
