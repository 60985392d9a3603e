"""The least time that a list could take: its linear layers alone, as matrix products in bf16.

Nothing else of the model is computed: no attention, softmax, GELU, layer norm or tokenisation, and no padding. Torch
makes the products, in turns with the served model, so that both meet the same machine.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank_bench.contestants import Contestant
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.rounds import Ratio, ratio, run_rounds
from triton_rerank_bench.workloads import Workload

FLOOR = "linear layers in bf16"
BATCH_TOKENS = 1024  # torch's rate is highest about there: activations stay in the cache
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers")


@dataclass(frozen=True)
class Floor:
    """What came of it.

    Attributes:
        seconds: median.
        tflops: 10¹² operations a second that the products reached, median.
        served: seconds of the served model over the floor's, paired within rounds.
    """

    seconds: float
    tflops: float
    served: Ratio


class LinearLayers:
    """A contestant that makes a list's matrix products and scores nothing.

    Args:
        checkpoint: PyTorch folder; its config.json gives the sizes.
        tokens: of the list.

    Raises:
        BenchError: config.json is not there, or is not that of a BERT-like encoder.
    """

    name = FLOOR

    def __init__(self, checkpoint: Path, tokens: int) -> None:
        import torch

        hidden, intermediate, self._layers = _sizes(checkpoint / "config.json")
        shapes = [(hidden, hidden)] * 4 + [(hidden, intermediate), (intermediate, hidden)]
        self.operations = 2 * tokens * self._layers * sum(rows * columns for rows, columns in shapes)
        self._no_grad: Callable[[], AbstractContextManager[object]] = torch.inference_mode
        self._weights = [torch.randn(shape, dtype=torch.bfloat16) for shape in shapes]
        counts = [BATCH_TOKENS] * (tokens // BATCH_TOKENS) + [tokens % BATCH_TOKENS]
        wide = torch.randn((BATCH_TOKENS, max(hidden, intermediate)), dtype=torch.bfloat16)
        self._inputs: list[dict[int, Any]] = [
            {width: wide[:count, :width].contiguous() for width in (hidden, intermediate)} for count in counts if count
        ]

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Nothing; the arguments are those of the list whose tokens were given."""
        with self._no_grad():
            for batch in self._inputs:
                for _ in range(self._layers):
                    for weight in self._weights:
                        batch[weight.shape[0]] @ weight
        return []


def measure_floor(
    served: Contestant,
    layers: LinearLayers,
    workload: Workload,
    *,
    n_rounds: int,
    seed: int,
    on_call: Callable[[str], None],
    during: AbstractContextManager[object],
) -> Floor:
    """Time the served model and the products of the same list in turns.

    Args:
        served: scores the list.
        layers: made for its tokens.
        workload: the list.
        n_rounds: counted rounds.
        seed: of the order.
        on_call: told who is next.
        during: entered for each turn, outside its clock.
    """
    rounds = run_rounds([served, layers], [workload], n_rounds=n_rounds, seed=seed, on_call=on_call, during=during)
    seconds = rounds.seconds[workload.name]
    least_s = statistics.median(seconds[layers.name])
    return Floor(least_s, layers.operations / least_s / 1e12, ratio(served.name, layers.name, seconds))


def _sizes(config: Path) -> tuple[int, int, int]:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        hidden, intermediate, layers = (int(found[name]) for name in _SIZES)
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise BenchError(
            f"{config}: looked for {', '.join(_SIZES)} ({exc!r}); give a checkpoint of BERT or RoBERTa"
        ) from exc
    return hidden, intermediate, layers
