"""The difference of a fine-tuned model to its body as a small delta, as export's `demo/demo_model.py` applies it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank_export.demo.demo_model import DELTA, LEFT, RIGHT, State
from triton_rerank_export.errors import ExportError


def compress(
    body_state: Mapping[str, npt.NDArray[Any]], tuned_state: Mapping[str, npt.NDArray[Any]], *, rank: int = 48
) -> State:
    """Return what ``apply_delta`` needs to make the tuned parameters, nearly, of the body's.

    A changed matrix becomes two fp16 factors by truncated SVD, unless it is so small that it takes less room whole
    (fp16). Changed vectors and parameters new to the body stay whole in float32. What did not change is left out:
    the word embeddings, half of a small model, when they were frozen.

    Args:
        body_state: the body's parameters, float arrays under the checkpoint's names.
        tuned_state: the fine-tuned parameters; every parameter of the body must be there in the same shape.
        rank: columns of the left factor; 48 lost nothing measurable on the demo model.

    Raises:
        ExportError: a rank below 1, a parameter that is missing or has another shape, or a difference that is not
            finite or beyond fp16.
    """
    if rank < 1:
        raise ExportError(f"rank is {rank}; it must be at least 1, 48 is the usual one")
    if missing := sorted(set(body_state) - set(tuned_state)):
        raise ExportError(f"the tuned model lacks {missing[0]!r} of the body; it was trained from another body")
    delta: State = {}
    for name in sorted(tuned_state):
        tuned = tuned_state[name]
        if name not in body_state:
            delta[name] = tuned.astype(np.float32)
        elif not np.array_equal(body_state[name], tuned):
            delta |= _compressed(name, _difference(name, body_state[name], tuned), rank)
    return delta


def _difference(name: str, body: npt.NDArray[Any], tuned: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if body.shape != tuned.shape:
        raise ExportError(f"{name!r} has shape {tuned.shape} in the tuned model, {body.shape} in the body")
    difference: npt.NDArray[np.float64] = tuned.astype(np.float64) - body
    if not np.isfinite(difference).all():
        raise ExportError(f"the difference of {name!r} is not finite; train again with a lower learning rate")
    return difference


def _compressed(name: str, difference: npt.NDArray[np.float64], rank: int) -> State:
    if difference.ndim != 2:
        return {name + DELTA: difference.astype(np.float32)}
    rows, columns = difference.shape
    if rank * (rows + columns) >= rows * columns:
        return {name + DELTA: _half(name, difference)}
    left, singular, right = np.linalg.svd(difference, full_matrices=False)
    root = np.sqrt(singular[:rank])  # shared out evenly, so that neither factor leaves fp16's range
    return {name + LEFT: _half(name, left[:, :rank] * root), name + RIGHT: _half(name, root[:, None] * right[:rank])}


def _half(name: str, array: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
    limit = float(np.finfo(np.float16).max)
    if (largest := float(np.abs(array).max(initial=0.0))) > limit:
        raise ExportError(f"the difference of {name!r} reaches {largest:.3g}, beyond fp16's {limit:.0f}; train again")
    return np.ascontiguousarray(array, dtype=np.float16)
