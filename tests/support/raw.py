"""Requests to Triton without our client, for what our client would never send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

DTYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "object": "BYTES"}


def infer_raw(
    target: str,
    model: str,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    parameters: Mapping[str, Any] | None = None,
    version: str = "",
) -> dict[str, npt.NDArray[Any]]:
    """One inference; lists of str or bytes become BYTES tensors of shape (n, 1)."""
    with triton.InferenceServerClient(target) as client:
        result = client.infer(
            model,
            [_tensor(name, value) for name, value in inputs.items()],
            outputs=[triton.InferRequestedOutput(name) for name in outputs],
            model_version=version,
            parameters=dict(parameters or {}),
            client_timeout=30.0,
        )
        return {name: result.as_numpy(name) for name in outputs}


def _tensor(name: str, value: Any) -> triton.InferInput:
    array = value
    if isinstance(value, list):
        array = np.empty((len(value), 1), dtype=np.object_)
        array[:, 0] = [text.encode() if isinstance(text, str) else text for text in value]
    tensor = triton.InferInput(name, list(array.shape), DTYPES[array.dtype.name])
    tensor.set_data_from_numpy(array)
    return tensor
