"""Which model? Measures those of the catalogue that were exported here, and lists the others with their cards' figures.

    python bench/experiments/model_guide.py --model-repository model_repository --data examples/handbook

`make guide` runs it and writes docs/models.md. Every model that export put into the repository is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from rich.console import Console

from triton_rerank import RerankClient, RerankError
from triton_rerank.repository import exported_models
from triton_rerank_export.checkpoint.catalogue import CATALOGUE, CatalogueEntry
from triton_rerank_retrieval.eval.cli import main as evaluate
from triton_rerank_server import ServerConfig, TritonServer
from triton_rerank_server.atomic import write_file

ROOT = Path(__file__).parents[2]
PASSAGES = (ROOT / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines()
CARDS = json.loads((Path(__file__).parent / "model_cards.json").read_text(encoding="utf-8"))
QUERY = "how do I make a file smaller?"
WARM_UP = 5
TEMPLATE = """# Which model

Written by `make guide` on {date}: {machine}.
It measures what `make export MODEL=…` has put into the repository. A load above 0 is other work, which makes it slower.

## Measured here

One caller, {calls} calls of {passages} passages each (`examples/passages.txt`), through Triton and the client.
nDCG@10: BM25's first 100 documents before → after reranking.

{measured}

## Not here: what others published

Nothing in this table was measured here. MTEB is the mean nDCG@10 over the retrieval sets of MTEB(eng, v2),
100 documents of each of six retrievers reranked; H100 is pairs/s on one, in bf16, of 512 tokens at most. Both
are of one comparison, published with the ettin rerankers (huggingface/blog, ettin-reranker.md), so they
compare. What stands under "elsewhere" does not: it is of the model's card, its maker's page or another's
listing. – stands where none was looked up.

{others}
"""


@dataclass(frozen=True)
class Measured:
    """One model of the repository.

    Attributes:
        precision: as it was exported.
        megabytes: of the files that compute, all versions.
        pairs_per_s: of one caller that waits for each answer.
        p50_ms: median milliseconds of a call with all passages.
        p99_ms: their 99th percentile.
        quality: collection -> nDCG@10 of BM25 and of BM25's candidates reranked.
    """

    precision: str
    megabytes: float
    pairs_per_s: float
    p50_ms: float
    p99_ms: float
    quality: dict[str, tuple[float, float]]


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--data", action="append", required=True, help="as of triton-rerank-eval; repeatable")
    parser.add_argument("--calls", type=int, default=200, help="timed, of 22 passages each (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "models.md")
    options = parser.parse_args()
    here, console = exported_models(options.model_repository), Console(soft_wrap=True, highlight=False)
    if not here:
        console.print(f"model_guide: {options.model_repository} holds no model: `make export MODEL=…` builds one")
        return 2
    load = os.getloadavg()[0]
    try:
        measured = {name: measure(name, options) for name in here}
    except RerankError as error:
        console.print(f"model_guide: {error}")
        return 1
    write_file(options.output, page(measured, options.calls, load).encode())
    console.print(f"{options.output}: {len(measured)} measured, {len(set(CATALOGUE) - set(measured))} from their cards")
    return 0


def measure(name: str, options: argparse.Namespace) -> Measured:
    """Serve the repository, time one model of it, and evaluate it."""
    config = ServerConfig(options.model_repository, grpc_port=0, http_port=0, metrics_port=0)
    with TritonServer(config) as server, RerankClient(server.grpc_target, model=name, timeout_s=120) as client:
        precision = client.model_info().precision
        seconds = []
        for _ in range(WARM_UP + options.calls):
            begin = time.perf_counter()
            client.score(QUERY, PASSAGES)
            seconds.append(time.perf_counter() - begin)
    times = np.array(seconds[WARM_UP:])
    files = (options.model_repository / f"{name}-encoder").rglob("*")
    return Measured(
        precision,
        sum(file.stat().st_size for file in files if file.is_file()) / 1e6,
        len(PASSAGES) * len(times) / float(times.sum()),
        1000 * float(np.median(times)),
        1000 * float(np.quantile(times, 0.99)),
        quality(name, options),
    )


def quality(name: str, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """By the evaluation itself, whose last line holds the main figures."""
    arguments = [part for source in options.data for part in ("--data", source)]
    arguments += ["--model-repository", f"model={options.model_repository}", "--model", name, "--no-bi-encoder"]
    arguments += ["--no-sweep", "--time-queries", "0", "--output", str(ROOT / ".cache" / "guide" / name)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = evaluate(arguments)
    if code:
        raise RerankError(f"triton-rerank-eval ended with {code} for {name}; it said why")
    figures = json.loads(printed.getvalue().splitlines()[-1])
    return {collection: (of["BM25"], of["BM25 > model"]) for collection, of in figures.items()}


def page(measured: dict[str, Measured], calls: int, load: float) -> str:
    """The guide, as Markdown."""
    collections = list(next(iter(measured.values())).quality)
    head = ["model", "precision", "MB", "pairs/s", "p50 ms", "p99 ms", *(f"nDCG@10 {name}" for name in collections)]
    rows = [[name, *_figures(one), _licence(name), _card(name, "languages")] for name, one in measured.items()]
    others = [_published(entry) for name, entry in CATALOGUE.items() if name not in measured]
    return TEMPLATE.format(
        date=date.today().isoformat(),
        machine=f"{os.cpu_count()} CPUs, {platform.machine()}, load {load:.0f} before it began",
        calls=calls,
        passages=len(PASSAGES),
        measured=_table([*head, "licence", "languages"], rows),
        others=_table(
            ["model", "parameters", "longest pair", "licence", "languages", "MTEB", "H100", "elsewhere"], others
        ),
    )


def _figures(one: Measured) -> list[str]:
    speed = (f"{one.megabytes:.0f}", f"{one.pairs_per_s:.0f}", f"{one.p50_ms:.0f}", f"{one.p99_ms:.0f}")
    return [one.precision, *speed, *(f"{before:.3f} → {after:.3f}" for before, after in one.quality.values())]


def _published(entry: CatalogueEntry) -> list[str]:
    facts = [entry.name, entry.params, f"{entry.max_length:,}", entry.licence]
    return [*facts, *(_card(entry.name, key) for key in ("languages", "mteb", "h100", "figure"))]


def _licence(name: str) -> str:
    return CATALOGUE[name].licence if name in CATALOGUE else "–"


def _card(name: str, key: str) -> str:
    return CARDS.get(name, {}).get(key) or "–"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    sys.exit(main())
