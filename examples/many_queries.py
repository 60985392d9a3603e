"""Many queries at once: a batch under one deadline, and a service that tells its callers' requests apart.

Needs `make serve`, and pip install 'triton-rerank[cache]' triton-rerank-retrieval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from triton_rerank import CachedScorer, RerankClient, RerankError, RerankResult, TritonScorer
from triton_rerank_retrieval import Request, RerankService

HERE = Path(__file__).parent
PASSAGES = (HERE / "passages.txt").read_text(encoding="utf-8").splitlines()
QUERIES = [json.loads(line)["query"] for line in (HERE / "queries.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Rank for many queries in one call, then again from the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="127.0.0.1:8001", help="host:port of Triton")
    options = parser.parse_args()

    scorer = CachedScorer(TritonScorer(options.target, "minilm-l6-demo"), max_pairs=100_000, ttl_s=3600)
    with RerankClient(scorer=scorer, timeout_s=60) as client:
        print("one deadline for all:")
        for query, answer in zip(QUERIES, client.rerank_many(QUERIES, [PASSAGES] * len(QUERIES)), strict=True):
            print(f"  {query} -> {best(answer)}")

        print("requests of two callers with the same query, a part of the passages each:")
        requests = [Request("ann", QUERIES[0], PASSAGES[:12]), Request("bob", QUERIES[0], PASSAGES[6:])]
        for id, answer in RerankService(client).rerank(requests).items():
            print(f"  {id} -> {best(answer)}")


def best(answer: RerankResult[str] | RerankError) -> str:
    """A query that failed fails alone: its error stands in its place."""
    if isinstance(answer, RerankError):
        return f"{type(answer).__name__}: {answer}"
    return f"{answer[0].document} ({answer.usage.cached_pairs} pairs from the cache)"


if __name__ == "__main__":
    main()
