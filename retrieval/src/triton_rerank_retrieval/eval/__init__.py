"""What each stage brings on one's own data. Needs ``pip install 'triton-rerank-retrieval[eval]'``."""
