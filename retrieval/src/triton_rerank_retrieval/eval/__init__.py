"""What each stage brings on one's own data. Needs ``pip install 'triton-rerank-retrieval[eval]'``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command ``triton-rerank-eval``, as `cli.main`; 2 where the extra is not installed."""
    try:
        from triton_rerank_retrieval.eval import cli
    except ModuleNotFoundError as error:
        needed = "pip install 'triton-rerank-retrieval[eval]'"
        sys.stderr.write(f"triton-rerank-eval: {error.name} is not installed: {needed}\n")
        return 2
    return cli.main()
