"""Starts a real Triton with the backends that rerankers need, and stops it cleanly."""

from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.process import TritonServer
from triton_rerank_server.settings import ServerConfig

__all__ = ["ServerConfig", "ServerStartError", "TritonServer"]
