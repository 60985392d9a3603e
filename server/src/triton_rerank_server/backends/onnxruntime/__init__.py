"""Triton backend: ONNX Runtime where the native one is absent."""
