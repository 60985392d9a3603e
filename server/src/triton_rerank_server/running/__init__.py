"""A Triton that runs: what is asked of it, whether it is ready and still scores, and how it is emptied."""
