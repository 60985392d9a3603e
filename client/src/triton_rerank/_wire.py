"""Request -> tensors, and tensors -> checked numpy arrays. Pure: numpy only."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triton_rerank.contract import DOCUMENT, LOGITS, QUERY, TOKEN_COUNT, TRUNCATED
from triton_rerank.errors import InvalidResponseError

_LENGTH = struct.Struct("<I")
INPUTS = (QUERY, DOCUMENT)
OUTPUTS = (LOGITS, TOKEN_COUNT, TRUNCATED)


@dataclass(frozen=True, slots=True)
class PairScores:
    """What the model said of n pairs, in request order.

    Attributes:
        logits: float32 ``(n,)``, all finite.
        token_count: int64 ``(n,)``, tokens the model read.
        truncated: bool ``(n,)``.
    """

    logits: npt.NDArray[np.float32]
    token_count: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


def encode_pairs(query: bytes, documents: Sequence[bytes]) -> dict[str, npt.NDArray[np.object_]]:
    """Tensors of one sub-request.

    Returns:
        Input name -> object array of bytes, ``(n, 1)``; the query is repeated in every row.
    """
    rows = np.empty((len(documents), 1), dtype=np.object_)  # (n, 1) bytes
    rows[:, 0] = documents
    return {QUERY: np.full_like(rows, query), DOCUMENT: rows}


def serialise(query: bytes, documents: Sequence[bytes]) -> dict[str, bytes]:
    """The tensors of `encode_pairs` as Triton's BYTES on the wire: before each text its length, 4 bytes, little-endian.

    Source: "Raw Binary Tensor Data" of Triton's binary data extension.
    """
    row = _LENGTH.pack(len(query)) + query
    parts = [part for document in documents for part in (_LENGTH.pack(len(document)), document)]
    return {QUERY: row * len(documents), DOCUMENT: b"".join(parts)}


def decode_scores(outputs: dict[str, npt.NDArray[np.generic] | None], *, n_documents: int) -> PairScores:
    """Check the tensors of one answer.

    Args:
        outputs: output name -> array as the server sent it, None if it is missing.
        n_documents: pairs sent; every output must have as many rows.

    Raises:
        InvalidResponseError: an output is missing, has another shape, or has a dtype that does not fit.
    """
    return PairScores(
        logits=decode_logits(_column(outputs, LOGITS, "f", n_documents), n_documents=n_documents),
        token_count=_column(outputs, TOKEN_COUNT, "iu", n_documents)[:, 0].astype(np.int64),
        truncated=_column(outputs, TRUNCATED, "b", n_documents)[:, 0].astype(np.bool_),
    )


def decode_logits(output: npt.NDArray[np.generic], *, n_documents: int) -> npt.NDArray[np.float32]:
    """Check a ``logits`` tensor and return one float32 logit per document.

    Args:
        output: fp16 or fp32 array of shape ``(n_documents, 1)``, as the ensemble returns it.
        n_documents: number of pairs sent; the row count must equal it.

    Returns:
        float32 array of shape ``(n_documents,)``, in request order. Unbounded, not activated.

    Raises:
        InvalidResponseError: wrong shape or dtype, or a NaN or infinite logit (its row is in the message).
    """
    logits = _check(LOGITS, output, "f", n_documents)[:, 0].astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(logits))
    if bad.size:
        raise InvalidResponseError(
            f"{LOGITS} has {bad.size} values that are not finite, the first ({logits[bad[0]]}) in row {bad[0]}: "
            "the model overflowed on that pair; serve it in fp32, or export it again"
        )
    return logits


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


def _column(
    outputs: dict[str, npt.NDArray[np.generic] | None], name: str, kinds: str, n_documents: int
) -> npt.NDArray[np.generic]:
    array = outputs.get(name)
    if array is None:
        raise InvalidResponseError(
            f"the answer has no {name}; it has {sorted(k for k, v in outputs.items() if v is not None)}"
        )
    return _check(name, array, kinds, n_documents)


def _check(name: str, array: npt.NDArray[np.generic], kinds: str, n_documents: int) -> npt.NDArray[np.generic]:
    if array.shape != (n_documents, 1):
        raise InvalidResponseError(f"{name} has shape {array.shape}: {(n_documents, 1)} was expected")
    if array.dtype.kind not in kinds:
        raise InvalidResponseError(f"{name} has dtype {array.dtype}: numpy kind {' or '.join(kinds)} was expected")
    return array
