"""Which model of a repository is measured, and its active version's files; what is wrong is a `BenchError`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triton_rerank import ConfigurationError, repository
from triton_rerank.contract import CONFIG_FILE, ENCODER_SUFFIX
from triton_rerank.repository import Artefacts
from triton_rerank_bench.errors import BenchError


def read_model(model_repository: Path, name: str | None = None) -> Artefacts:
    """Read the configs of one model: its active version is what a server would serve, and what is measured.

    Args:
        model_repository: Triton model repository, as triton-rerank-export writes it.
        name: public model name; None means the only one that is built there.

    Raises:
        BenchError: no such repository or model, more than one to choose from, or a file is missing.
    """
    try:
        model = repository.read_artefacts(model_repository, name or _only_model(model_repository))
    except ConfigurationError as exc:
        raise BenchError(str(exc)) from exc
    for path in (model.tokenizer_file, model.encoder_file):
        if not path.is_file():
            raise BenchError(f"{path}: looked for this file, and it is not there; `make export` builds it")
    return model


def read_config(model_repository: Path, folder: str) -> Any:
    """Parse the config.pbtxt of an ensemble or a step.

    Raises:
        BenchError: it is missing, or is not one.
    """
    try:
        return repository.read_config(model_repository, folder)
    except ConfigurationError as exc:
        raise BenchError(str(exc)) from exc


def _only_model(model_repository: Path) -> str:
    built = repository.exported_models(model_repository)
    names = [name for name in built if repository.read_artefacts(model_repository, name).encoder_file.is_file()]
    if not names:
        raise BenchError(
            f"--model-repository {model_repository}: looked for a built model there (<model>/{CONFIG_FILE} and "
            f"<model>{ENCODER_SUFFIX}/<version>/model.onnx), and found none; `make export` builds one"
        )
    if len(names) > 1:
        raise BenchError(f"--model-repository {model_repository}: holds {', '.join(names)}; say which by --model")
    return names[0]
