"""A fine-tuned checkpoint as a small difference to a body everyone can get: pure functions, numpy only.

Names in a delta: ``<parameter>.left`` @ ``<parameter>.right`` is added to the body's matrix, ``<parameter>.delta`` is
added, any other name replaces or adds a parameter. Parameters are named as in BertForSequenceClassification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError

State = dict[str, npt.NDArray[Any]]

LEFT, RIGHT, DELTA = ".left", ".right", ".delta"


def apply_delta(state: Mapping[str, npt.NDArray[Any]], delta: Mapping[str, npt.NDArray[Any]]) -> State:
    """Return the body's parameters with a delta applied; neither argument is changed.

    Args:
        state: the body's parameters under the checkpoint's names, float arrays of any shape.
        delta: what ``compress`` returns, or what a delta file holds.

    Returns:
        Every parameter of the body plus those that only the delta has. Parameters that the delta touches are
        float32, the others are the body's own arrays.

    Raises:
        ExportError: a factor without its partner, a parameter that the body lacks, or shapes that do not fit.
    """
    tuned = dict(state)
    for name in sorted(delta):
        if name.endswith(RIGHT):
            _required(delta, name.removesuffix(RIGHT) + LEFT)  # applied with its partner
        elif name.endswith(LEFT):
            parameter = name.removesuffix(LEFT)
            update = _product(parameter, delta[name], _required(delta, parameter + RIGHT))
            tuned[parameter] = _added(parameter, _in_body(state, parameter), update)
        elif name.endswith(DELTA):
            parameter = name.removesuffix(DELTA)
            tuned[parameter] = _added(parameter, _in_body(state, parameter), delta[name])
        else:
            tuned[name] = delta[name].astype(np.float32)
    return tuned


def _required(delta: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if name not in delta:
        raise ExportError(f"the delta lacks {name!r}, the partner of a factor it has; the file is damaged: get it anew")
    return delta[name]


def _in_body(state: Mapping[str, npt.NDArray[Any]], parameter: str) -> npt.NDArray[Any]:
    if parameter not in state:
        raise ExportError(f"the delta changes {parameter!r}, which the body lacks; this delta is for another body")
    return state[parameter]


def _product(parameter: str, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ExportError(f"the factors of {parameter!r} do not multiply: {left.shape} and {right.shape}")
    # A product of two fp16 numbers is a multiple of 2^-48, so float64 sums them exactly (below 32) in any order:
    # the assembled bytes do not depend on the machine's BLAS.
    return left.astype(np.float64) @ right.astype(np.float64)


def _added(parameter: str, base: npt.NDArray[Any], update: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if base.shape != update.shape:
        raise ExportError(f"the delta of {parameter!r} has shape {update.shape}, the body's parameter {base.shape}")
    total: npt.NDArray[np.float32] = (base.astype(np.float64) + update).astype(np.float32)
    return total
