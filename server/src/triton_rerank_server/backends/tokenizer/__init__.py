"""Triton backend: text pairs to tensors."""
