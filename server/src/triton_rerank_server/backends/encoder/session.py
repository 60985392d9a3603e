"""What an engine computes with: a graph that one library has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

WIDTHS = "widths"  # input of a flat graph: int32 (rows,), how many numbers of each other input are a row's


class EngineError(ValueError):
    """A model, a setting or a run that failed; the message names the file, the value and the bound.

    Whoever sent the tensors is not to blame: the server answers INTERNAL, and a chain asks its next scorer.
    """


class TensorError(EngineError):
    """Tensors that no run can score, by their own fault; the server answers INVALID_ARG."""


class Session(Protocol):
    """One loaded graph.

    Attributes:
        input_names: of the graph.
        output_names: of the graph.
        micro_batch_tokens: padded tokens that it computes best at once.
        batch_cost_tokens: what a run costs however small it is, in tokens that could be computed instead.
        length_step: padded lengths that are a multiple of it are computed fastest.
    """

    input_names: list[str]
    output_names: list[str]
    micro_batch_tokens: int
    batch_cost_tokens: int
    length_step: int

    def run(self, inputs: Mapping[str, Ids]) -> npt.NDArray[np.float32]:
        """Input name -> int64 ``(n, padded length)``; gives logits ``(n, 1)``.

        A flat graph takes int64 ``(tokens,)``, and `WIDTHS`.

        Raises:
            TensorError: an id is outside its table.
            EngineError: the library failed.
        """
        ...


class SessionOptions(Protocol):
    """Settings of one library, which know how to open a graph with it."""

    def open(self, model_file: str) -> Session:
        """Load a graph.

        Raises:
            EngineError: it cannot be loaded, or a setting is unknown.
        """
        ...


def whole(key: str, value: str) -> int:
    """A parameter of config.pbtxt as a number.

    Raises:
        EngineError: it is none, or negative.
    """
    if not value.isdecimal():
        raise EngineError(f"parameter {key} is {value!r}: it must be a whole number, 0 or more")
    return int(value)
