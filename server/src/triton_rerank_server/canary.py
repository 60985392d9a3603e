"""Ready means: a known pair comes back in the right order, through the whole path, for every model of ours."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from triton_rerank import RerankClient
from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_server.errors import ServerStartError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Canary:
    """A query whose documents the exported model is known to order; written by export into the manifest.

    Attributes:
        model: public model name.
        query: the query.
        documents: best first, by the PyTorch model that the export was compared with.
    """

    model: str
    query: str
    documents: list[str]


def read_canaries(model_repository: Path) -> list[Canary]:
    """Read the canary of every ensemble that has a manifest.

    Raises:
        ServerStartError: a manifest cannot be read.
    """
    canaries = []
    for path in sorted(model_repository.glob(f"*/{MANIFEST_FILE}")):
        try:
            canary = json.loads(path.read_text(encoding="utf-8"))["canary"]
            canaries.append(Canary(path.parent.name, canary["query"], canary["documents"]))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ServerStartError(f"{path}: not a manifest ({exc!r}); export the model again") from exc
    if not canaries:
        _log.warning("%s: no %s, so ready means Triton's own word only", model_repository, MANIFEST_FILE)
    return canaries


def check_canary(target: str, canary: Canary, *, timeout_s: float) -> None:
    """Score the canary and compare the order.

    Raises:
        ServerStartError: the order is wrong: the served model is not the one that was exported.
        RerankError: the server did not answer.
    """
    with RerankClient(target, model=canary.model) as client:
        ranking = [ranked.index for ranked in client.rerank(canary.query, canary.documents, timeout_s=timeout_s)]
    if ranking != list(range(len(canary.documents))):
        raise ServerStartError(
            f"model {canary.model} answers, but orders its canary {ranking} instead of "
            f"{list(range(len(ranking)))}: weights, tokenizer and config do not belong together; export it again"
        )
