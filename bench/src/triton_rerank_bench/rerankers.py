"""Which served models a command measures: ``NAME=PATH`` of their repositories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_rerank_bench.errors import BenchError


@dataclass(frozen=True)
class Reranker:
    """A served model to measure.

    Attributes:
        label: what the report calls it.
        model_repository: where Triton finds it.
        model: public model name; None means the only one there.
    """

    label: str
    model_repository: Path
    model: str | None = None


def name_rerankers(values: list[str], model: str | None) -> list[Reranker]:
    """Read ``NAME=PATH`` or ``PATH``, whose name is then the folder's.

    Args:
        values: as given to ``--model-repository``.
        model: public model name, or None.

    Raises:
        BenchError: a folder is not there, or two have one name.
    """
    rerankers = []
    for value in values:
        name, separator, path = value.rpartition("=")
        folder = Path(path)
        if not folder.is_dir():
            raise BenchError(f"--model-repository {value}: looked for the folder {folder}; `make export` builds one")
        rerankers.append(Reranker(name if separator else folder.resolve().name, folder, model))
    names = [reranker.label for reranker in rerankers]
    if len(set(names)) < len(names):
        raise BenchError(f"--model-repository: the names {', '.join(names)} must differ; give them as NAME=PATH")
    return rerankers
