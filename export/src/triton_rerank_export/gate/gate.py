"""The gate: what a staged repository would serve, held against PyTorch fp32 from the same text.

First the tokens, which must be equal: a wrong pad id or segment id need not move a logit of these pairs to be wrong.
Then the logits, and the scores of sentence-transformers. Only one model is in memory at a time, PyTorch's first.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from triton_rerank_export.checkpoint.for_transformers import readable
from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.checkpoint.tokenizer_files import check_same, load
from triton_rerank_export.errors import ExportError, about, words
from triton_rerank_export.gate import parity
from triton_rerank_export.gate.cross_encoder import hold_against_peer
from triton_rerank_export.gate.parity import Logits, ParityQuery, ParityReport
from triton_rerank_export.gate.reference import ActivationPeak, Reference
from triton_rerank_export.gate.served import ServedScorer
from triton_rerank_export.graph import fp16
from triton_rerank_export.repository.triton_config import ServedModel
from triton_rerank_server.backends.encoder.session import EngineError
from triton_rerank_server.backends.tokenizer.pairs import PairError

Progress = Callable[[str], object]


def run_gate(checkpoint: Checkpoint, staged: Path, served: ServedModel, *, on_step: Progress) -> ParityReport:
    """Hold a staged repository against the checkpoint that it was made from.

    Args:
        checkpoint: what was exported.
        staged: repository with the files that will be served.
        served: the model's data.
        on_step: called with what is being done.

    Returns:
        How the export compared with PyTorch, all bounds kept.

    Raises:
        DisagreementError: a bound is not kept.
        ExportError: the tokens differ, sentence-transformers gives other scores, or an activation is too large for
            fp16.
    """
    queries = parity.load_parity_set()
    with _told(checkpoint, staged):
        scorer = ServedScorer(staged, served)
        with readable(checkpoint.folder) as folder:
            expected, peak = _pytorch(checkpoint, folder, queries, scorer, served, on_step)
            gc.collect()  # each model's weights must be gone before the next one reads its own
            peer = hold_against_peer(checkpoint, folder, queries, expected, served, on_step)
        gc.collect()
        got = _logits(queries, scorer.logits, "the export", on_step)
    report = replace(parity.compare(queries, expected, got), peer_difference=peer.difference, notes=peer.notes)
    if peak is not None:
        report = replace(report, largest_activation=peak.value, largest_activation_module=peak.module)
    parity.check(report, served.precision)
    return report


def check_tokens(
    queries: Sequence[ParityQuery], reference: Reference, scorer: ServedScorer, served: ServedModel, n_segments: int
) -> None:
    """Compare every tensor that the encoder would get with transformers' own, position by position.

    Args:
        queries: pairs to compare.
        reference: transformers.
        scorer: what will be served.
        served: the model's data.
        n_segments: rows of the model's table of segments; with one row there is nothing to choose.

    Raises:
        ExportError: names the first tensor, position and pair that differ, and both values.
    """
    for query in queries:
        tensors = scorer.tokenizer.encode(query.query, query.documents)
        width = tensors.input_ids.shape[1]
        for row, document in enumerate(query.documents):
            expected = reference.tokens(query.query, document, width=width)
            for name in served.tensors:
                ours = getattr(tensors, name)[row]
                theirs = expected.get(name, np.zeros_like(ours))  # what the model takes where none are given
                if not np.array_equal(ours, theirs):
                    raise ExportError(_token_difference(served, name, theirs.tolist(), ours.tolist(), query, document))
            left_out = [name for name in sorted(set(expected) - {*served.tensors}) if expected[name].any()]
            if left_out and n_segments > 1:
                raise ExportError(
                    f"{served.name}: its tokenizer gives {', '.join(left_out)}, which change what the model computes, "
                    "and are not served for its architecture; model and tokenizer do not belong together"
                )


@contextlib.contextmanager
def _told(checkpoint: Checkpoint, staged: Path) -> Iterator[None]:
    """Errors of what is served, in one line and without the folder in which it is staged."""
    try:
        yield
    except (PairError, EngineError) as exc:
        of_engine = "the exported graph does not take its tokenizer's tokens: " * isinstance(exc, EngineError)
        raise ExportError(f"{checkpoint.name}: {of_engine}{words(exc, hidden=str(staged))}") from exc


def _pytorch(
    checkpoint: Checkpoint,
    folder: Path,
    queries: Sequence[ParityQuery],
    scorer: ServedScorer,
    served: ServedModel,
    on_step: Progress,
) -> tuple[list[Logits], ActivationPeak | None]:
    """All that needs transformers; it is let go on return."""
    on_step("comparing tokens with transformers")
    reference = Reference(
        folder,
        max_length=served.max_length,
        label=checkpoint.label,
        tensors=served.tensors,
        pad_token_id=checkpoint.pad_token_id,
        query_prompt=served.query_prompt,
        special_tokens_in_text=served.special_tokens_in_text,
        allow_pickle=checkpoint.allow_pickle,
        row=checkpoint.row,
        watched=checkpoint.family.in_half if served.precision == "fp16" else None,
        prompt=None if checkpoint.asked is None else checkpoint.asked.prompt,
        head=checkpoint.head,
    )
    with about(checkpoint.label):
        theirs, ours = reference.tokenizer.backend_tokenizer, load(checkpoint.folder)
        check_same(theirs, ours, special_are_text=served.special_tokens_in_text == "text")
    overlong = parity.overlong_query(served.max_length)
    check_tokens([*queries, overlong], reference, scorer, served, checkpoint.n_segments)
    expected = _logits(queries, reference.logits, "PyTorch", on_step)
    peak = reference.peak
    if peak is not None and not peak.value <= fp16.LARGEST:  # NaN too
        raise ExportError(  # on a CPU ONNX Runtime computes fp16 in fp32, so the logits would not show it
            f"{checkpoint.name}: activations of {peak.module} reach {peak.value:.6g} on the parity set, fp16 ends at "
            f"{fp16.LARGEST:g}; export it in fp32"
        )
    return expected, peak


def _logits(
    queries: Sequence[ParityQuery], score: Callable[[str, Sequence[str]], Logits], whose: str, on_step: Progress
) -> list[Logits]:
    logits = []
    for number, query in enumerate(queries, start=1):
        on_step(f"comparing: {whose}, query {number} of {len(queries)}")
        logits.append(score(query.query, query.documents))
    return logits


def _token_difference(
    served: ServedModel, name: str, theirs: list[int], ours: list[int], query: ParityQuery, document: str
) -> str:
    pairs = enumerate(zip_longest(theirs, ours))
    position, (expected, got) = next((at, values) for at, values in pairs if values[0] != values[1])
    return (
        f"{served.name}: {name} at position {position} of {len(ours)} is {got}, transformers has {expected}, for "
        f"{query.query[:40]!r} / {document[:40]!r}; tokenizer.json, tokenizer_config.json and the pad_token_id of "
        f"config.json ({served.pad_token_id}) do not belong together"
        + (", or the prompt is another" if served.prompt else "")
    )
