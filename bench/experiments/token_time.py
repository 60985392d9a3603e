"""What is the least time that a list could take, and does a token cost the same in a short list as in a long one?

    python bench/experiments/token_time.py --model-repository model_repository --checkpoint .cache/checkpoint

The floor is a list's linear layers alone, as torch's matrix products in bf16, in turns with the served model: no
attention, softmax, GELU, layer norm, tokenisation or padding. It is one only where the processor has instructions for
bf16. docs/results.md and docs/LOG.md have what came of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from triton_rerank_bench import workloads
from triton_rerank_bench.compare.contestants import Contestant, Served, token_counts, tokenizer_of
from triton_rerank_bench.compare.race import ratio, run_rounds
from triton_rerank_bench.machine import OtherLoad, describe_machine
from triton_rerank_bench.report import Table, others, text
from triton_rerank_bench.served import read_model, serve
from triton_rerank_bench.workloads import Workload

SIZES = (10, 30, 100, 300, 1000)
REFERENCE = "100 documents"
TURN_DOCUMENTS = 300  # short lists are scored several times in a turn: one call after a pause is a cold one
BATCH_TOKENS = 1024  # torch's rate is highest about there: activations stay in the cache


class LinearLayers:
    """A contestant that makes the matrix products of so many tokens and scores nothing."""

    name = "linear layers in bf16"

    def __init__(self, checkpoint: Path, tokens: int) -> None:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        hidden, intermediate, self._layers = (
            int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
        )
        shapes = [(hidden, hidden)] * 4 + [(hidden, intermediate), (intermediate, hidden)]
        self.operations = 2 * tokens * self._layers * sum(rows * columns for rows, columns in shapes)
        self._weights = [torch.randn(shape, dtype=torch.bfloat16) for shape in shapes]
        counts = [BATCH_TOKENS] * (tokens // BATCH_TOKENS) + [tokens % BATCH_TOKENS]
        wide = torch.randn((BATCH_TOKENS, max(hidden, intermediate)), dtype=torch.bfloat16)
        self._inputs = [
            {width: wide[:count, :width].contiguous() for width in (hidden, intermediate)} for count in counts if count
        ]

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Nothing; the arguments are those of the list whose tokens were given."""
        with torch.inference_mode():
            for batch in self._inputs:
                for _ in range(self._layers):
                    for weight in self._weights:
                        batch[weight.shape[0]] @ weight
        return []


def main() -> None:
    """Time the floor and lists of several sizes beside the served model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    files, console, load = read_model(options.model_repository, options.model), Console(width=110), OtherLoad()
    lists = [
        replace(workloads.passages(options.seed, n), name=f"{n} documents", calls=max(1, TURN_DOCUMENTS // n))
        for n in SIZES
    ]
    tokenizer = tokenizer_of(files)
    tokens = {each.name: sum(token_counts(tokenizer, each.query, each.documents)) for each in lists}
    hundred = workloads.passages(options.seed)
    layers = LinearLayers(options.checkpoint, tokens[REFERENCE])
    with serve(options.model_repository, files.info.name, on_progress=lambda _: None) as server:
        served = Served(server.client)
        turns: list[tuple[list[Contestant], list[Workload]]] = [([served, layers], [hundred]), ([served], lists)]
        beside, alone = (
            run_rounds(who, what, n_rounds=options.rounds, seed=options.seed, during=load) for who, what in turns
        )
    seconds = beside.seconds[hundred.name]
    least_s = statistics.median(seconds[layers.name])
    console.print(
        f"Linear layers of the 100 pairs alone, in bf16: {least_s:.3f} s at {layers.operations / least_s / 1e12:.2f} "
        f"TFLOP/s; served takes {text(ratio(served.name, layers.name, seconds), '.3f')} times that; the processor has "
        f"{', '.join(describe_machine().cpu_flags)}",
        highlight=False,
    )
    us = {name: [1e6 * s / tokens[name] for s in of_who[served.name]] for name, of_who in alone.seconds.items()}
    rows = [
        {"list": name, "tokens": tokens[name], "us": statistics.median(us[name]), "over": ratio(name, REFERENCE, us)}
        for name in us
    ]
    columns = {"list": "list", "tokens": "tokens:,", "µs / token": "us:.1f", f"/ that of {REFERENCE}": "over:.3f"}
    console.print(Table("served lists of several sizes", columns, rows).grid())
    console.print(others(load.share()), markup=False)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
