"""The second reference: sentence-transformers' own ``CrossEncoder``, which most users of such a checkpoint run.

It reads files that the first one does not know of: activation, prompt, length, modules. So a score that differs from
its ``predict`` is found here, whatever the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError, explained
from triton_rerank_export.gate.reference import give_segments
from triton_rerank_export.graph.trace import quiet
from triton_rerank_export.repository.triton_config import SpecialTokensInText

Scores = npt.NDArray[np.float32]


class CannotScore(ExportError):
    """Sentence-transformers fails on this checkpoint."""


class Peer:
    """A checkpoint in ``CrossEncoder``, in fp32, with the prompt and the activation that it reads itself.

    Args:
        folder: checkpoint folder, as transformers reads it.
        special_tokens_in_text: special tokens written inside a text are "text", or what they name: "special".
        row: of its scores, where it gives several a pair; None: it gives one.
        segments: the model reads them.

    Attributes:
        told: its tokenizer would have given the model no segments, and was told to.

    Raises:
        CannotScore: sentence-transformers cannot load it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        special_tokens_in_text: SpecialTokensInText,
        row: int | None = None,
        segments: bool = False,
    ) -> None:
        self._row = row
        with _its_fault("it cannot load the checkpoint", hidden=str(folder)):
            from sentence_transformers import CrossEncoder

            model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
            model.tokenizer.split_special_tokens = special_tokens_in_text == "text"
            self.told = segments and give_segments(model.tokenizer)
            self._model: Any = model.float()

    @property
    def max_length(self) -> int:
        """Tokens at which it cuts a pair by itself."""
        stated = self._model[0].processing_kwargs.get("text", {}).get("max_length")
        return int(stated or self._model.max_seq_length)

    def scores(self, query: str, documents: Sequence[str], *, max_length: int) -> tuple[Scores, Scores]:
        """Score one query with n documents, cut at ``max_length`` tokens.

        Returns:
            float32 ``(n,)`` each: what it gives before the activation, and after it, the result of ``predict``.

        Raises:
            CannotScore: sentence-transformers cannot score them.
        """
        import torch

        pairs = [(query, document) for document in documents]
        options = {"processing_kwargs": {"text": {"max_length": max_length}}, "show_progress_bar": False}
        with _its_fault("it cannot score a pair"), torch.inference_mode():
            logits = self._model.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True, **options)
            scores = self._model.activation_fn(logits)  # what predict does with its own, without a second run
            served = ... if self._row is None else (slice(None), self._row)
            return logits[served].float().numpy(), scores[served].float().numpy()


@contextlib.contextmanager
def _its_fault(what: str, *, hidden: str = "") -> Iterator[None]:
    try:
        with explained(what, hidden=hidden), quiet():
            yield
    except ExportError as exc:
        raise CannotScore(str(exc)) from exc.__cause__
