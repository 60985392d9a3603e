"""Ready means: a known pair comes back in the right order, through the whole path, for every model of ours."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from triton_rerank import ConfigurationError
from triton_rerank.contract import MANIFEST_FILE
from triton_rerank.repository import active_version, exported_models
from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.running.control import Control, ControlError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Canary:
    """A query whose documents the exported model is known to order; export writes one into each version's manifest.

    Attributes:
        model: public model name.
        query: the query.
        documents: best first, by the PyTorch model that the export was compared with.
    """

    model: str
    query: str
    documents: list[str]


def read_canaries(model_repository: Path) -> list[Canary]:
    """Read the canary of the active version of every model that export put there.

    Raises:
        ServerStartError: a config or a manifest cannot be read.
    """
    canaries = [_read_canary(model_repository, name) for name in exported_models(model_repository)]
    if not canaries:
        _log.warning("%s: no %s, so ready means Triton's own word only", model_repository, MANIFEST_FILE)
    return canaries


def _read_canary(model_repository: Path, model: str) -> Canary:
    """The canary of the version that the ensemble's config serves."""
    try:
        path = model_repository / model / str(active_version(model_repository, model)) / MANIFEST_FILE
    except ConfigurationError as exc:
        raise ServerStartError(str(exc)) from exc
    try:
        canary = json.loads(path.read_text(encoding="utf-8"))["canary"]
        return Canary(model, canary["query"], canary["documents"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ServerStartError(f"{path}: not as export writes it ({exc!r}); export the model again") from exc


def check_canary(control: Control, canary: Canary, *, timeout_s: float) -> None:
    """Score the canary and compare the order.

    Raises:
        ServerStartError: the order is wrong: the served model is not the one that was exported.
        ControlError: no answer, or one that holds no numbers.
    """
    logits = score_canary(control, canary, timeout_s=timeout_s)
    ranking = sorted(range(len(logits)), key=lambda place: -logits[place])
    if ranking != list(range(len(canary.documents))):
        raise ServerStartError(
            f"model {canary.model} answers, but orders its canary {ranking} instead of "
            f"{list(range(len(ranking)))}: weights, tokenizer and config do not belong together; export it again"
        )


def score_canary(control: Control, canary: Canary, *, timeout_s: float) -> list[float]:
    """Logits of the canary's documents, whatever their order.

    Raises:
        ControlError: no answer, or one that holds no numbers.
    """
    logits = control.logits(canary.model, canary.query, canary.documents, timeout_s=timeout_s)
    if not all(map(math.isfinite, logits)):
        raise ControlError(f"model {canary.model} answers with {logits}, which are no numbers", status=500)
    return logits
