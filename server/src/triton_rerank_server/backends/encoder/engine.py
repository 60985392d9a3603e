"""Scores pairs in micro-batches. Knows nothing of Triton.

On a CPU a batch of one or two thousand tokens runs up to three times faster than one large batch, because its
activations stay in the cache. Sorting rows by length first saves padding, and so does a new batch where the padding
would cost more than the batch does (docs/LOG.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .onnxruntime_session import OnnxRuntimeOptions
from .openvino_session import OpenVinoOptions
from .session import WIDTHS, EngineError, Ids, SessionOptions, TensorError

OPENVINO = "openvino"
ENGINES = ("onnxruntime", OPENVINO)


@dataclass(frozen=True)
class Rows:
    """Model inputs of n pairs, right-padded to one width: input name -> int64 ``(n, width)``."""

    inputs: Mapping[str, Ids]
    lengths: npt.NDArray[np.intp] = field(init=False)  # (n,) tokens a row

    def __post_init__(self) -> None:
        mask = self.inputs["attention_mask"] != 0
        last = mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)  # after the last 1, holes or not
        object.__setattr__(self, "lengths", np.where(mask.any(axis=1), last, 1))

    def padded(self, step: int) -> npt.NDArray[np.intp]:
        """Lengths ``(n,)``, each up to the next multiple of ``step`` where the rows are as wide."""
        width = self.inputs["attention_mask"].shape[1]
        return np.minimum(-(-self.lengths // step) * step, width)


@dataclass
class Computed:
    """What an engine has computed so far, failed runs included.

    Attributes:
        batches: runs of the library.
        pairs: rows.
        tokens: of them.
        padded_tokens: rows × width.
    """

    batches: int = 0
    pairs: int = 0
    tokens: int = 0
    padded_tokens: int = 0


class Engine:
    """One session of a one-logit cross-encoder.

    Args:
        model_file: the graph.
        options: which library, and its settings; None means ONNX Runtime's defaults.

    Attributes:
        computed: counts of all runs; whoever computes adds to it, others only read.
        is_flat: its graph takes rows one after the other, without padding, and their widths.

    Raises:
        EngineError: the file is missing or broken, or a setting is unknown.
    """

    def __init__(self, model_file: Path, options: SessionOptions | None = None) -> None:
        if not model_file.is_file():
            raise EngineError(f"{model_file}: no such file; export the model again")
        self._session = (options or OnnxRuntimeOptions()).open(str(model_file))
        self.is_flat = WIDTHS in self._session.input_names
        self.input_names = [name for name in self._session.input_names if name != WIDTHS]
        self.output_names = self._session.output_names
        self.micro_batch_tokens = self._session.micro_batch_tokens
        self.batch_cost_tokens: float = self._session.batch_cost_tokens
        self.length_step = self._session.length_step
        self.computed = Computed()

    def run(self, inputs: Mapping[str, Ids]) -> npt.NDArray[np.float32]:
        """As `Session.run`, and counted."""
        mask = inputs["attention_mask"]
        self.computed.batches += 1
        self.computed.pairs += len(inputs.get(WIDTHS, mask))
        self.computed.tokens += int(np.count_nonzero(mask))
        self.computed.padded_tokens += mask.size
        return self._session.run(inputs)

    def logits(self, requests: Sequence[Mapping[str, Ids]]) -> list[npt.NDArray[np.float32]]:
        """Score the pairs of several requests together.

        Args:
            requests: per request, input name -> int64 ``(n, padded length)``; right-padded, lengths may differ
                between requests.

        Returns:
            Per request, float32 ``(n, 1)``, rows in the order given.

        Raises:
            TensorError: the tensors of a request do not fit each other, or an id is outside its table.
            EngineError: the library failed.
        """
        for request in requests:
            check(request, self.input_names)
        rows = Rows(_stack(requests, self.input_names))
        lengths = rows.padded(self._session.length_step)
        out = np.empty((len(lengths), 1), dtype=np.float32)
        for batch in micro_batches(lengths, self.micro_batch_tokens, self.batch_cost_tokens, flat=self.is_flat):
            width = int(lengths[batch].max())
            out[batch] = self.run(
                flattened([(rows, batch)], self.input_names)
                if self.is_flat
                else {name: np.ascontiguousarray(rows.inputs[name][batch, :width]) for name in self.input_names}
            )
        ends = np.cumsum([len(request["attention_mask"]) for request in requests])
        return np.split(out, ends[:-1])


def options_of(
    backend: str,
    parameters: Mapping[str, str],
    *,
    threads: int = 0,
    graph_level: int = 0,
    device_id: int | None = None,
    cuda_options: Mapping[str, str] | None = None,
) -> OnnxRuntimeOptions | OpenVinoOptions:
    """Settings of an encoder's config.pbtxt.

    Args:
        backend: of the config; where its parameters name an ``engine``, that one counts: "openvino" or "onnxruntime".
        parameters: of the config.
        threads: that one inference computes with; 0 means what the parameters say, or one a physical core.
        graph_level: its ``optimization.graph.level``.
        device_id: CUDA device, or None for the CPU.
        cuda_options: of its accelerator called "cuda".

    Raises:
        EngineError: a value is out of its bounds, or the engine is not known.
    """
    engine = parameters.get("engine", backend)
    if engine not in ENGINES:
        raise EngineError(f"the encoder's engine is {engine!r}: it must be one of {', '.join(ENGINES)}")
    if engine == OPENVINO:
        openvino = OpenVinoOptions.of_parameters(parameters)
        return replace(openvino, inference_num_threads=threads or openvino.inference_num_threads)
    onnxruntime = OnnxRuntimeOptions.of_parameters(
        parameters, graph_level=graph_level, device_id=device_id, cuda_options=cuda_options
    )
    return replace(onnxruntime, intra_op_thread_count=threads or onnxruntime.intra_op_thread_count)


def micro_batches(
    lengths: npt.NDArray[np.intp], budget: int, batch_cost: float = math.inf, *, flat: bool = False
) -> list[npt.NDArray[np.intp]]:
    """Split rows, shortest first, into batches of at most ``budget`` padded tokens (one row may pass it).

    Args:
        lengths: int ``(n,)``, tokens a row.
        budget: tokens a batch, padding to its longest row included.
        batch_cost: tokens of padding that are as bad as one batch more; no batch has more padding.
        flat: nothing is padded.

    Returns:
        Index arrays; together they hold each row once.
    """
    order = np.argsort(lengths, kind="stable")
    edges, tokens = [0], 0
    for place, length in enumerate(lengths[order].tolist()):
        rows = place - edges[-1]
        padded = tokens + length if flat else (rows + 1) * length
        if rows and (padded > budget or padded - length - tokens > batch_cost):
            edges.append(place)
            tokens = 0
        tokens += length
    return np.split(order, edges[1:]) if len(order) else []


def flattened(
    parts: Sequence[tuple[Rows, npt.NDArray[np.intp] | list[int]]], names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """What a flat graph takes, of some rows of one or several requests: each as long as it is, one after the other.

    Args:
        parts: per request, which of its rows.
        names: of the inputs.

    Returns:
        Input name -> int64 ``(tokens,)``, and `WIDTHS` -> int32 ``(rows,)``.
    """
    feed: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*names, WIDTHS)}
    for rows, picked in parts:
        lengths = rows.lengths[picked]
        feed[WIDTHS].append(lengths.astype(np.int32))
        inside = np.arange(lengths.max()) < lengths[:, None]
        for name in names:
            feed[name].append(rows.inputs[name][picked, : lengths.max()][inside])
    return {name: np.concatenate(arrays) for name, arrays in feed.items()}


def check(request: Mapping[str, Ids], names: Sequence[str]) -> None:
    """Hold the tensors of a request together.

    Raises:
        TensorError: their shapes differ, none or no token is there, or a number is below 0.
    """
    shapes = {name: request[name].shape for name in names}
    shape = shapes["attention_mask"]
    if len(set(shapes.values())) > 1 or len(shape) != 2 or 0 in shape:
        raise TensorError(f"cannot score these tensors: shapes {shapes} must be equal, (pairs, tokens), and not empty")
    for name in names:
        if (least := request[name].min()) < 0:  # would be counted from a table's end
            raise TensorError(f"cannot score these tensors: {name} has {least}, it must be 0 or more")


def _stack(requests: Sequence[Mapping[str, Ids]], names: Sequence[str]) -> dict[str, Ids]:
    if len(requests) == 1:
        return {name: requests[0][name] for name in names}
    width = max(request["attention_mask"].shape[1] for request in requests)
    return {name: np.concatenate([_widen(request[name], width) for request in requests]) for name in names}


def _widen(array: Ids, width: int) -> Ids:
    missing = width - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing))) if missing else array  # padding is cut off again before compute
