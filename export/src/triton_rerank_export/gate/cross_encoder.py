"""The second reference: sentence-transformers' own ``CrossEncoder``, which most users of such a checkpoint run.

It reads files that the first one does not know of: activation, prompt, length, modules. So a score that differs from
its ``predict`` is found here, whatever the reason. What is held against its scores are PyTorch's logits with the
activation and the prompt that will be served: the served graph is held against the same logits, by the bounds of its
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank.core.ranking import activate
from triton_rerank_export.checkpoint.causal import Asked
from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.errors import ExportError, explained
from triton_rerank_export.gate.parity import Logits, ParityQuery
from triton_rerank_export.gate.reference import give_segments
from triton_rerank_export.graph.trace import quiet
from triton_rerank_export.repository.triton_config import ServedModel, SpecialTokensInText

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
        with explained("it cannot load the checkpoint", hidden=str(folder), kind=CannotScore), quiet():
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
        with explained("it cannot score a pair", kind=CannotScore), quiet(), torch.inference_mode():
            logits = self._model.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True, **options)
            scores = self._model.activation_fn(logits)  # what predict does with its own, without a second run
            served = ... if self._row is None else (slice(None), self._row)
            return logits[served].float().numpy(), scores[served].float().numpy()


BOUND = 1e-3  # of the largest logit, or of 1: two ways to compute the same in fp32, one pair or a batch at a time

_TOLD = (
    "The installed transformers' tokenizer gives this model no segments, against its tokenizer.json; it is served with "
    "them, as transformers 4 reads it, and was compared so."
)


@dataclass(frozen=True)
class PeerReport:
    """What the comparison found.

    Attributes:
        difference: largest difference of a score; None where there was no comparison.
        notes: why there was none, or what was done for it.
    """

    difference: float | None = None
    notes: tuple[str, ...] = ()


def hold_against_peer(
    checkpoint: Checkpoint,
    folder: Path,
    queries: Sequence[ParityQuery],
    expected: Sequence[Logits],
    served: ServedModel,
    on_step: Callable[[str], object],
) -> PeerReport:
    """Compare logits and scores of all queries with those of ``CrossEncoder``, where it can load the checkpoint.

    Args:
        checkpoint: what was exported.
        folder: its folder as transformers reads it.
        queries: the parity set.
        expected: PyTorch's logits, a query float32 ``(n,)`` for its n documents.
        served: the model's data.
        on_step: called with what is being done.

    Raises:
        ExportError: sentence-transformers cuts pairs earlier than they would be served, or gives other scores.
    """
    if checkpoint.asked is not None and not checkpoint.templated:
        return PeerReport(notes=_asked_otherwise(checkpoint, checkpoint.asked))
    try:
        meaning = "special" if checkpoint.templated else served.special_tokens_in_text  # a template is made of them
        peer = Peer(folder, special_tokens_in_text=meaning, row=checkpoint.row, segments=checkpoint.token_type_ids)
        if peer.max_length < served.max_length:
            raise ExportError(
                f"{checkpoint.label}: sentence-transformers cuts a pair at {peer.max_length} tokens, it would be "
                f"served with {served.max_length}; export it with --max-length {peer.max_length}"
            )
        found = []
        for number, query in enumerate(queries, start=1):
            on_step(f"comparing: sentence-transformers, query {number} of {len(queries)}")
            found.append(peer.scores(query.query, query.documents, max_length=served.max_length))
    except CannotScore as exc:
        return PeerReport(notes=(f"The scores were not compared with sentence-transformers: {exc}.",))
    differences = []
    for query, logits, (their_logits, their_scores) in zip(queries, expected, found, strict=True):
        _hold("logit", logits, their_logits, query, checkpoint)
        differences.append(_hold("score", activate(logits, served.activation), their_scores, query, checkpoint))
    return PeerReport(max(differences), notes=(_TOLD,) if peer.told else ())


def _hold(what: str, ours: npt.NDArray[Any], theirs: Scores, query: ParityQuery, checkpoint: Checkpoint) -> float:
    """The largest difference, if it is within the bound."""
    differences = np.abs(ours - theirs)
    bound = BOUND * max(1.0, float(np.max(np.abs(theirs))))
    if np.all(differences <= bound):  # NaN is never within it
        return float(np.max(differences))
    row = int(np.argmax(differences))
    raise ExportError(
        f"{checkpoint.label}: sentence-transformers gives the {what} {theirs[row]:.6g}, it would be served with "
        f"{ours[row]:.6g} (bound {bound:.2g}), for {query.query[:40]!r} / {query.documents[row][:40]!r}; something in "
        "the checkpoint changes scores and is not known here: look into its files for sentence-transformers, "
        "config.json and tokenizer_config.json"
    )


def _asked_otherwise(checkpoint: Checkpoint, asked: Asked) -> tuple[str, ...]:
    held = (
        "The scores were not compared with sentence-transformers, which leaves the prompt to its caller; it is that of "
        f"{asked.name}."
    )
    if checkpoint.asked_by_name:
        return (held,)
    return (held, f"No file says which prompt it was trained with; {asked.name} was taken for its class (--prompt).")
