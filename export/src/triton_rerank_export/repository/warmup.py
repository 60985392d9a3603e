"""Warm-up requests of the encoder: the shapes that users will send are run before the server says ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tritonclient.grpc import model_config_pb2 as pb

from triton_rerank import contract

Warmup = Literal["full", "light", "none"]

LIGHT_TOKENS = 1024  # what the CPU engine computes at once, whatever a request holds (engine.CPU_TOKENS)
_INT64_BYTES = 8


def warmups(
    kind: Warmup, *, tensors: Sequence[str], ladder: Sequence[int], max_batch_size: int, most_tokens: int
) -> list[Any]:
    """One ``ModelWarmup`` for each padded length with one pair, and one with a full batch.

    Args:
        kind: "full" runs as many pairs as are ever computed at once, "light" as many as a CPU computes at once.
        tensors: names of the encoder's inputs.
        ladder: padded lengths.
        max_batch_size: pairs.
        most_tokens: padded tokens of a sample; one of a single pair may pass it.
    """
    if kind == "none":
        return []
    tokens = most_tokens if kind == "full" else LIGHT_TOKENS
    sizes = {rung: sorted({1, min(max_batch_size, max(1, tokens // rung))}) for rung in ladder}
    return [_warmup(tensors, rung, size) for rung in ladder for size in sizes[rung]]


def warmup_files(kind: Warmup, *, ladder: Sequence[int]) -> dict[str, bytes]:
    """Content of the encoder's ``warmup`` folder: per padded length, the attention mask of one full row."""
    return {} if kind == "none" else {_mask_file(rung): (1).to_bytes(_INT64_BYTES, "little") * rung for rung in ladder}


def _warmup(tensors: Sequence[str], rung: int, size: int) -> Any:
    inputs = {name: pb.ModelWarmup.Input(data_type=pb.TYPE_INT64, dims=[rung]) for name in tensors}
    for name, tensor in inputs.items():
        if name == contract.ATTENTION_MASK:  # zeros would be padding, which the engine cuts off
            tensor.input_data_file = _mask_file(rung)
        else:
            tensor.zero_data = True
    return pb.ModelWarmup(name=f"{size}x{rung}", batch_size=size, inputs=inputs)


def _mask_file(rung: int) -> str:
    return f"attention_mask-{rung}"
