"""Logits -> order and scores. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from triton_rerank.types import Activation


def order(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Document indexes, best first; equal logits keep the caller's order.

    Sorts by the logits: a sigmoid would tie the best documents (in fp16 it is exactly 1.0 from logit 8.4 up).

    Args:
        logits: float32 ``(n,)``, all finite.
    """
    return np.argsort(-logits, kind="stable")


def activate(logits: npt.NDArray[np.float32], activation: Activation) -> npt.NDArray[np.float64]:
    """Scores on the scale that the model was trained for.

    Args:
        logits: float32 ``(n,)``.
        activation: "sigmoid" (0 to 1) or "identity" (unbounded).

    Returns:
        float64 ``(n,)``.
    """
    wide = logits.astype(np.float64)
    if activation == "identity":
        return wide
    # sigmoid(x) = exp(min(x, 0)) / (1 + exp(-|x|)): no overflow at either end
    scores: npt.NDArray[np.float64] = np.exp(np.minimum(wide, 0.0)) / (1.0 + np.exp(-np.abs(wide)))
    return scores
