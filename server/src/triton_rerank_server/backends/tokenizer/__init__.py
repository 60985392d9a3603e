"""Triton backend: text pairs to tensors. Inside Triton the folder is a package of its own, ``tokenizer``."""
