"""How two rankings agree. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two score lists: 1 the same order, −1 the reverse.

    Args:
        first: n scores, n at least 2.
        second: n scores of the same documents.

    Returns:
        −1 to 1; 0 where a list is constant, since it has no order to agree with.
    """
    upper = np.triu_indices(len(first), k=1)
    a, b = (np.sign(np.subtract.outer(scores, scores))[upper] for scores in (np.array(first), np.array(second)))
    pairs = math.sqrt(float(np.count_nonzero(a)) * float(np.count_nonzero(b)))
    return float((a * b).sum()) / pairs if pairs else 0.0
