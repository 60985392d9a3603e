"""Start Triton on a model repository, rerank the passages beside this file, stop it. `make demo` runs it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from triton_rerank import RerankClient, RerankError
from triton_rerank.cli import format_ranking
from triton_rerank_server import ServerConfig, ServerStartError, TritonServer

HERE = Path(__file__).parent


def main() -> int:
    """Start Triton, rank the examples, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=HERE.parent / "model_repository")
    parser.add_argument("--model", default="minilm-l6-demo")
    parser.add_argument("--top-k", type=int, default=5)
    options = parser.parse_args()
    console = Console()
    config = ServerConfig(options.model_repository, grpc_port=0, http_port=0, metrics_port=0)
    server = TritonServer(config, on_progress=lambda step: console.print(f"[dim]{step} …[/dim]"))
    begin = time.perf_counter()
    try:
        with server:
            console.print(f"Triton is ready on {server.grpc_target} after {time.perf_counter() - begin:.1f} s\n")
            rerank_examples(server.grpc_target, options.model, options.top_k, console)
            console.print("[dim]stopping tritonserver …[/dim]")
    except (ServerStartError, RerankError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


def rerank_examples(target: str, model: str, top_k: int, console: Console) -> None:
    """Print a ranking of the passages for each query of the examples."""
    passages = (HERE / "passages.txt").read_text(encoding="utf-8").splitlines()
    with RerankClient(target, model=model) as client:
        for line in (HERE / "queries.jsonl").read_text(encoding="utf-8").splitlines():
            query = json.loads(line)["query"]
            result = client.rerank(query, passages, top_k=top_k)
            console.print(f"[bold]{query}[/bold]", highlight=False)
            print(format_ranking(result, width=console.width), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
