"""sentence-transformers on the device that is measured: loaded in a given type, at its default and at its best."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triton_rerank_bench.contestants import PEER_BATCH_SIZE, Predict
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gpu_device import Kind

DEFAULT = "sentence-transformers bf16"
BEST = "sentence-transformers bf16, best batch"
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1_024)
_CALLS = 4  # of each batch size; the first warms up

Type = Literal["float32", "bfloat16"]
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class BatchSize:
    """One batch size of the peer.

    Attributes:
        batch_size: pairs.
        pairs_per_s: best of the counted calls; None where the device's memory was not enough.
    """

    batch_size: int
    pairs_per_s: float | None


class DevicePeer:
    """A CrossEncoder on a device.

    Args:
        checkpoint: PyTorch folder.
        max_length: tokens a pair.
        kind: device.
        device_id: GPU.
        dtype: of weights and activations.
        attention: implementation that transformers is asked for.

    Raises:
        BenchError: it cannot be loaded so.
    """

    def __init__(
        self, checkpoint: Path, *, max_length: int, kind: Kind, device_id: int, dtype: Type, attention: str
    ) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local folder: nothing is asked of the hub
        import torch
        from sentence_transformers import CrossEncoder

        self._torch = torch
        settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        try:
            self._model: Any = CrossEncoder(
                str(checkpoint),
                max_length=max_length,
                device=f"cuda:{device_id}" if kind == "cuda" else "cpu",
                model_kwargs=settings,
                activation_fn=torch.nn.Identity(),  # a sigmoid in bf16 would tie the best documents
            )
        except (ImportError, OSError, ValueError) as exc:
            raise BenchError(
                f"sentence-transformers cannot load {checkpoint} with {attention} attention: {exc}"
            ) from exc

    def default(self, pairs: Pairs, batch_size: int = PEER_BATCH_SIZE) -> list[float]:
        """Logits, fetched as `CrossEncoder.predict` does by default: one by one."""
        return [float(score) for score in self._model.predict(pairs, batch_size=batch_size, show_progress_bar=False)]

    def tuned(self, pairs: Pairs, batch_size: int) -> list[float]:
        """Logits, fetched from the device in one piece."""
        scores = self._model.predict(pairs, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        logits: list[float] = scores.float().cpu().tolist()
        return logits

    def sweep(self, pairs: Pairs, sizes: Sequence[int]) -> list[BatchSize]:
        """Pairs a second at each batch size that such a list can fill, and at the next one."""
        useful = [size for place, size in enumerate(sizes) if place == 0 or sizes[place - 1] < len(pairs)]
        return [BatchSize(size, self._rate(pairs, size)) for size in useful]

    def close(self) -> None:
        """Give the device's memory back."""
        self._model = None
        gc.collect()
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()

    def _rate(self, pairs: Pairs, batch_size: int) -> float | None:
        try:
            return best_rate(self.tuned, pairs, batch_size)
        except self._torch.OutOfMemoryError:
            self._torch.cuda.empty_cache()
            return None


def best_rate(
    predict: Predict, pairs: Pairs, batch_size: int, *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Pairs a second of the fastest of a few calls, a first one apart."""
    seconds = []
    for _ in range(_CALLS):
        start = clock()
        predict(pairs, batch_size)
        seconds.append(clock() - start)
    return len(pairs) / min(seconds[1:])


def fastest(tried: Sequence[BatchSize]) -> int:
    """Batch size with most pairs a second.

    Raises:
        BenchError: none fits the device's memory.
    """
    rates = {found.batch_size: found.pairs_per_s for found in tried if found.pairs_per_s is not None}
    if not rates:
        raise BenchError(f"sentence-transformers: no batch of {tried[0].batch_size} pairs or more fits the device")
    return max(rates, key=lambda size: rates[size])


def reserved_mib(kind: Kind, device_id: int) -> int | None:
    """Most device memory that torch held in this process; None on a CPU."""
    if kind == "cpu":
        return None
    import torch

    return int(torch.cuda.max_memory_reserved(device_id)) // 2**20


def forget_reserved(kind: Kind, device_id: int) -> None:
    """Begin `reserved_mib` anew."""
    if kind == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device_id)
