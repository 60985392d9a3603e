"""Does the checkpoint as it is served give the scores that sentence-transformers gives?

What is held against its scores are PyTorch's logits with the activation and the prompt that will be served: the served
graph is held against the same logits, by the bounds of its precision.
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
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate.cross_encoder import CannotScore, Peer, Scores
from triton_rerank_export.gate.parity import Logits, ParityQuery
from triton_rerank_export.repository.triton_config import ServedModel

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
