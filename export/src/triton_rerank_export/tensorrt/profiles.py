"""TensorRT's optimisation profiles, from the ladder of padded lengths and the batch limit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triton_rerank_export.errors import ExportError

Shape = tuple[int, int]  # pairs, tokens a pair


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine takes, every input alike.

    Attributes:
        minimum: fewest pairs and tokens.
        optimum: what the kernels are chosen for.
        maximum: most pairs and tokens.
    """

    minimum: Shape
    optimum: Shape
    maximum: Shape


def profiles(ladder: Sequence[int], max_batch_size: int) -> tuple[Profile, ...]:
    """One profile a rung; together they take every length from 1 to the last rung.

    Args:
        ladder: padded lengths, ascending.
        max_batch_size: most pairs of an execution.
    """
    lowest = (1, *(rung + 1 for rung in ladder[:-1]))
    return tuple(
        Profile((1, low), (max_batch_size, rung), (max_batch_size, rung))
        for low, rung in zip(lowest, ladder, strict=True)
    )


def whole_range(ladder: Sequence[int], max_batch_size: int) -> Profile:
    """One profile for all lengths, with the kernels chosen for the ladder's middle."""
    return Profile((1, 1), (max_batch_size, ladder[len(ladder) // 2]), (max_batch_size, ladder[-1]))


def profile_index(among: Sequence[Profile], length: int) -> int:
    """Index of the profile that takes a padded length.

    Raises:
        ExportError: none does.
    """
    for index, profile in enumerate(among):
        if profile.minimum[1] <= length <= profile.maximum[1]:
            return index
    raise ExportError(f"tensors are {length} tokens long: the plan takes 1 to {among[-1].maximum[1]}")


def shape_list(inputs: Sequence[str], shape: Shape) -> str:
    """``input_ids:1x32,attention_mask:1x32``, as ONNX Runtime writes shapes."""
    return ",".join(f"{name}:{shape[0]}x{shape[1]}" for name in inputs)
