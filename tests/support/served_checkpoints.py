"""What an export of a checkpoint would serve, held against sentence-transformers; or the line that refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.folders import fingerprint

from triton_rerank import RerankClient
from triton_rerank.local.scorer import LocalScorer
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate.reference import load_model
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model

QUERY = "how do I compress a file?"
DOCUMENTS = ["gzip shrinks a file", "A file cabinet with four drawers", "", "Für München sagt der Wetterdienst"]


def served(checkpoint: Path) -> list[float]:
    """Scores of what an export of it would serve."""
    repository = checkpoint.parent / "models"
    options = ExportOptions(precision="fp32", name="m")
    export_model(str(checkpoint), repository, options, on_step=lambda _: None)
    with RerankClient(scorer=LocalScorer(repository, "m"), timeout_s=60) as client:
        return client.score(QUERY, DOCUMENTS)


def predicted(checkpoint: Path) -> list[float]:
    """What CrossEncoder of sentence-transformers gives."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(checkpoint), device="cpu", local_files_only=True)
    return [float(score) for score in model.predict([(QUERY, document) for document in DOCUMENTS])]


def check_served(checkpoint: Path) -> list[float]:
    """Served with the scores of sentence-transformers, which are not all the same."""
    scores = served(checkpoint)
    assert scores == pytest.approx(predicted(checkpoint), abs=1e-4)
    assert len({round(score, 3) for score in scores}) > 1
    return scores


def check_refused(checkpoint: Path, *fragments: str) -> None:
    """In one line that names what is wrong, with nothing written."""
    repository = checkpoint.parent / "models"
    before = fingerprint(checkpoint)
    with pytest.raises(ExportError) as error:
        export_model(str(checkpoint), repository, ExportOptions(precision="fp32", name="m"), on_step=lambda _: None)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments), message
    assert "\n" not in message
    assert fingerprint(checkpoint) == before and not repository.exists()


def check_served_or_refused(checkpoint: Path, *fragments: str) -> None:
    """Where another release may learn to serve it."""
    try:
        check_served(checkpoint)
    except ExportError as exc:
        assert all(fragment in str(exc) for fragment in fragments), exc
        assert "\n" not in str(exc)


def load_logits(checkpoint: Path, *, segments: bool = True) -> list[float]:
    """PyTorch's logits of the same pairs."""
    from transformers import AutoTokenizer

    model, tokenizer = load_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    rows = tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS, padding=True, return_tensors="pt")
    if not segments:
        del rows["token_type_ids"]
    with torch.no_grad():
        return [float(logit) for logit in model(**rows).logits.ravel()]
