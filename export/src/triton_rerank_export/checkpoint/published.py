"""Logits that the authors of models printed: those of the catalogue's models, and those of a file of the same form.

Of the catalogue's, the cards of ms-marco and gte ran in fp32, those of bge in fp16. The red planet's pairs are those of
sentence-transformers' own tests of pretrained models, most of which ran in bf16, Qwen3's in fp32; those of Paris are
fastembed's tests', which ran the fp32 ONNX; those of Apple a blog's, which does not say in which precision it ran.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_export.errors import ExportError

_OF_THE_CATALOGUE = Path(__file__).with_name("published_scores.jsonl")
FP32_TOLERANCE = 0.01  # between logits of two fp32 engines, as cards print them
FP16_TOLERANCE = 0.05  # where either side ran in fp16
BF16_TOLERANCE = 0.1  # where the published side ran in bf16, whose steps are 0.03 to 0.06 at 4 to 16


@dataclass(frozen=True)
class PublishedScore:
    """A pair with the logit that the model's authors printed for it.

    Attributes:
        query: what was asked.
        document: what it was scored against.
        logit: raw model output, before any activation.
        tolerance: largest difference to it that a right model may show.
    """

    query: str
    document: str
    logit: float
    tolerance: float = FP32_TOLERANCE


def scores_of(model: str) -> tuple[PublishedScore, ...]:
    """Pairs with their logits from a model's card, by its public name; none where it has no such card."""
    lines = _OF_THE_CATALOGUE.read_text(encoding="utf-8").splitlines()
    return tuple(_parse(line, _OF_THE_CATALOGUE.name) for line in lines if json.loads(line)["model"] == model)


def read_scores(path: Path) -> list[PublishedScore]:
    """Read scores of a model outside the catalogue: JSON lines with query, document, logit and, if wanted, tolerance.

    Raises:
        ExportError: the file cannot be read, or a line is not of that form; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ExportError(f"{path}: cannot be read ({exc})") from exc
    scores = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not scores:
        raise ExportError(f"{path}: it is empty; a JSON object with query, document and logit was expected a line")
    return scores


def _parse(line: str, where: str) -> PublishedScore:
    try:
        entry = json.loads(line)
    except ValueError as exc:
        raise ExportError(f"{where}: not JSON ({exc})") from exc
    if not isinstance(entry, dict):
        raise ExportError(f"{where}: a JSON object was expected, not {type(entry).__name__}")
    for key in ("query", "document"):
        if not isinstance(entry.get(key), str):
            raise ExportError(f"{where}: {key} is {entry.get(key)!r}; a text was expected")
    logit = _number(entry.get("logit"), "logit", where)
    tolerance = _number(entry.get("tolerance", FP32_TOLERANCE), "tolerance", where)
    if tolerance <= 0:
        raise ExportError(f"{where}: tolerance is {tolerance}; it must be above 0")
    return PublishedScore(entry["query"], entry["document"], logit, tolerance)


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ExportError(f"{where}: {key} is {value!r}; a finite number was expected")
    return float(value)
