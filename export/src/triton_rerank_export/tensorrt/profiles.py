"""TensorRT's optimisation profiles, from the ladder of padded lengths and the batch limit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triton_rerank_export.errors import ExportError

Shape = tuple[int, int]  # pairs, tokens a pair
_FEW = 8  # pairs: a query with its ten best documents asks for other kernels than a full execution


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
    """Two profiles a rung: for few pairs, and for as many as there may be.

    Every length from 1 to the last rung has both. Triton takes the fitting one whose optimum is nearest.

    Args:
        ladder: padded lengths, ascending.
        max_batch_size: most pairs of an execution.
    """
    lowest = (1, *(rung + 1 for rung in ladder[:-1]))
    few = [(1, _FEW)] if max_batch_size > _FEW else []
    return tuple(
        Profile((1, low), (optimum, rung), (most, rung))
        for low, rung in zip(lowest, ladder, strict=True)
        for optimum, most in [*few, (max_batch_size, max_batch_size)]
    )


def whole_range(ladder: Sequence[int], max_batch_size: int) -> Profile:
    """One profile for all lengths, with the kernels chosen for the ladder's middle."""
    return Profile((1, 1), (max_batch_size, ladder[len(ladder) // 2]), (max_batch_size, ladder[-1]))


def profile_index(among: Sequence[Profile], pairs: int, length: int) -> int:
    """Index of the narrowest profile that takes so many pairs of a padded length; the widest where none takes so many.

    Raises:
        ExportError: none takes the length.
    """
    fitting = [index for index, each in enumerate(among) if each.minimum[1] <= length <= each.maximum[1]]
    if not fitting:
        raise ExportError(f"tensors are {length} tokens long: the plan takes 1 to {among[-1].maximum[1]}")
    return next((index for index in fitting if pairs <= among[index].maximum[0]), fitting[-1])


def shape_list(inputs: Sequence[str], shape: Shape) -> str:
    """``input_ids:1x32,attention_mask:1x32``, as ONNX Runtime writes shapes."""
    return ",".join(f"{name}:{shape[0]}x{shape[1]}" for name in inputs)
