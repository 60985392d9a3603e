"""Moved."""

from triton_rerank_server.backends.encoder.engine import Engine, micro_batches
from triton_rerank_server.backends.encoder.onnxruntime_session import CPU_TOKENS, GPU_TOKENS, cuda_available
from triton_rerank_server.backends.encoder.onnxruntime_session import OnnxRuntimeOptions as EngineOptions
from triton_rerank_server.backends.encoder.session import EngineError

__all__ = ["CPU_TOKENS", "GPU_TOKENS", "Engine", "EngineError", "EngineOptions", "cuda_available", "micro_batches"]
