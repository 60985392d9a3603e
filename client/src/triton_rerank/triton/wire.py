"""Request -> bytes of tensors, and tensors -> checked numpy arrays. Pure: numpy only."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from triton_rerank.contract import DOCUMENT, LOGITS, QUERY, TOKEN_COUNT, TRUNCATED
from triton_rerank.errors import InvalidResponseError

_LENGTH = struct.Struct("<I")
INPUTS = (QUERY, DOCUMENT)
OUTPUTS = (LOGITS, TOKEN_COUNT, TRUNCATED)
_DTYPES: dict[str, dict[str, np.dtype[Any]]] = {  # output -> what it may be, by Triton's names
    LOGITS: {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")},
    TOKEN_COUNT: {"INT32": np.dtype("<i4"), "INT64": np.dtype("<i8")},
    TRUNCATED: {"BOOL": np.dtype("?")},
}
# An output as it came: Triton's name of its datatype, its shape, and its bytes in little-endian row order.
Tensor: TypeAlias = "tuple[str, Sequence[int], bytes]"


@dataclass(frozen=True, slots=True)
class PairScores:
    """What the model said of n pairs, in request order.

    Attributes:
        logits: float32 ``(n,)``, all finite.
        token_count: whole numbers ``(n,)``, tokens the model read.
        truncated: bool ``(n,)``.
    """

    logits: npt.NDArray[np.float32]
    token_count: npt.NDArray[np.integer[Any]]
    truncated: npt.NDArray[np.bool_]


def encode_pairs(query: bytes, documents: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Contents of the inputs `INPUTS`, ``(n, 1)`` BYTES each; the query is repeated in every row.

    On the wire, each text has its length before it, 4 bytes, little-endian. Source: "Raw Binary Tensor Data" of
    Triton's binary data extension.
    """
    row = _LENGTH.pack(len(query)) + query
    parts = [part for document in documents for part in (_LENGTH.pack(len(document)), document)]
    return row * len(documents), b"".join(parts)


def decode_scores(outputs: Mapping[str, Tensor], *, n_documents: int) -> PairScores:
    """Check the tensors of one answer.

    Args:
        outputs: output name -> tensor.
        n_documents: pairs sent; every output must have as many rows of one value.

    Raises:
        InvalidResponseError: an output is missing, has another shape or datatype, or a logit is NaN or infinite.
    """
    return PairScores(
        logits=finite(_column(outputs, LOGITS, n_documents)),
        token_count=_column(outputs, TOKEN_COUNT, n_documents),
        truncated=_column(outputs, TRUNCATED, n_documents),
    )


def merge(parts: Sequence[tuple[Sequence[int], PairScores]], n_documents: int) -> PairScores:
    """Put the answers of sub-requests back into the caller's order.

    Args:
        parts: document indexes of each sub-request with its scores.
        n_documents: documents of the whole request.
    """
    merged = PairScores(
        np.zeros(n_documents, np.float32), np.zeros(n_documents, np.int64), np.zeros(n_documents, np.bool_)
    )
    for indexes, scores in parts:
        rows = np.asarray(indexes, dtype=np.intp)
        merged.logits[rows] = scores.logits
        merged.token_count[rows] = scores.token_count
        merged.truncated[rows] = scores.truncated
    return merged


def finite(column: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Logits ``(n,)``, fp16 or fp32, as float32.

    Raises:
        InvalidResponseError: one is NaN or infinite; its row is in the message.
    """
    logits = column.astype(np.float32, copy=False)
    if not math.isfinite(sum(logits.tolist())):  # in float64, where float32 values cannot add up to infinity
        bad = np.flatnonzero(~np.isfinite(logits))
        raise InvalidResponseError(
            f"{LOGITS} has {bad.size} values that are not finite, the first ({logits[bad[0]]}) in row {bad[0]}: "
            "the model overflowed on that pair; serve it in fp32, or export it again"
        )
    return logits


def _column(outputs: Mapping[str, Tensor], name: str, n_documents: int) -> npt.NDArray[Any]:
    """An output, ``(n,)``; it cannot be written to."""
    if name not in outputs:
        raise InvalidResponseError(f"the answer has no {name}; it has {sorted(outputs)}")
    datatype, shape, content = outputs[name]
    if tuple(shape) != (n_documents, 1):
        raise InvalidResponseError(f"{name} has shape {tuple(shape)}: {(n_documents, 1)} was expected")
    dtype = _DTYPES[name].get(datatype)
    if dtype is None:
        raise InvalidResponseError(f"{name} has datatype {datatype}: {' or '.join(_DTYPES[name])} was expected")
    if len(content) != n_documents * dtype.itemsize:
        raise InvalidResponseError(f"{name} has {len(content)} bytes: {n_documents} values of {datatype} were expected")
    return np.frombuffer(content, dtype)
