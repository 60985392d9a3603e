"""Say how sure the model is, and show nothing rather than what does not answer.

Needs `make serve`. These bounds are for the demo model and show the form only: `triton-rerank-eval` fits them on judged
queries of yours, and writes the file for `ConfidenceBands.from_file`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from triton_rerank import ConfidenceBands, RerankClient, Thresholds

PASSAGES = (Path(__file__).parent / "passages.txt").read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Rank with a least score, and show each document's band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="how do I make a file smaller?")
    parser.add_argument("--target", default="127.0.0.1:8001", help="host:port of Triton")
    parser.add_argument("--min-score", type=float, default=0.7, help="leave out what is below (%(default)s)")
    options = parser.parse_args()

    bands = ConfidenceBands({"minilm-l6-demo": Thresholds(high=0.85, medium=0.75)})
    with RerankClient(options.target, model="minilm-l6-demo", confidence=bands, timeout_s=60) as client:
        result = client.rerank(options.query, PASSAGES, min_score=options.min_score)
    for ranked in result:
        print(f"{ranked.confidence:6}  {ranked.score:.3f}  {ranked.document}")
    print(f"{len(PASSAGES) - len(result.documents)} of {len(PASSAGES)} left out")


if __name__ == "__main__":
    main()
