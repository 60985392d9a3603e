"""What a model repository says of a model: its active version, and the files that it is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triton_rerank.contract import (
    ENCODER_SUFFIX,
    MANIFEST_FILE,
    MAX_LENGTH,
    PAD_TOKEN_ID,
    TOKENIZER_SUFFIX,
)
from triton_rerank.errors import ConfigurationError
from triton_rerank.scorers.model_config import parse_model_info, with_step
from triton_rerank.types import ModelInfo

_IN_PROCESS = ("onnxruntime", "openvino")  # backends whose models can be scored without Triton


@dataclass(frozen=True, slots=True)
class Artefacts:
    """The active version of a model.

    Attributes:
        info: as a server would state it.
        tokenizer_file: ``tokenizer.json``.
        encoder_file: ``model.onnx``.
        backend: Triton's, of the encoder: "onnxruntime" or "openvino".
        parameters: of the encoder's config: its engine's settings.
        inputs: names of the graph's inputs.
        max_length: longest pair in tokens, as the tokenizer step has it.
        pad_token_id: id that fills a row up.
    """

    info: ModelInfo
    tokenizer_file: Path
    encoder_file: Path
    backend: str
    parameters: dict[str, str]
    inputs: tuple[str, ...]
    max_length: int
    pad_token_id: int


def read_artefacts(repository: Path, model: str) -> Artefacts:
    """Read the configs of an ensemble and of its two steps; the files themselves are not opened.

    Args:
        repository: model repository as written by triton-rerank-export.
        model: public model name.

    Raises:
        ConfigurationError: a config is missing, broken, or not as export writes it; or the encoder is no ONNX model.
    """
    ensemble = _read_config(repository, model)
    info = parse_model_info(model, ensemble)
    tokenizer = _read_config(repository, model + TOKENIZER_SUFFIX)
    encoder = _read_config(repository, model + ENCODER_SUFFIX)
    if encoder.backend not in _IN_PROCESS:
        raise ConfigurationError(
            f"{repository}: {encoder.name} is made for Triton's backend {encoder.backend!r}, and only ONNX models can "
            "be scored in process; export the model with --engine onnxruntime --name ANOTHER_NAME"
        )
    try:
        return _artefacts(repository, info, ensemble, tokenizer, encoder)
    except (KeyError, ValueError) as exc:
        raise ConfigurationError(
            f"{repository}: the configs of {model!r} are not as triton-rerank-export writes them ({exc!r}); "
            "export the model again"
        ) from exc


def _artefacts(repository: Path, info: ModelInfo, ensemble: Any, tokenizer: Any, encoder: Any) -> Artefacts:
    (active,) = ensemble.version_policy.specific.versions
    versions = {step.model_name: str(step.model_version) for step in ensemble.ensemble_scheduling.step}
    settings = {key: value.string_value for key, value in tokenizer.parameters.items()}
    graph_file = encoder.default_model_filename or "model.onnx"  # Triton's default
    return Artefacts(
        info=replace(with_step(info, tokenizer), version=str(active)),
        tokenizer_file=repository / tokenizer.name / versions[tokenizer.name] / "tokenizer.json",
        encoder_file=repository / encoder.name / versions[encoder.name] / graph_file,
        backend=encoder.backend,
        parameters={key: value.string_value for key, value in encoder.parameters.items()},
        inputs=tuple(tensor.name for tensor in encoder.input),
        max_length=int(settings[MAX_LENGTH]),
        pad_token_id=int(settings[PAD_TOKEN_ID]),
    )


def _read_config(repository: Path, name: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = repository / name / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except FileNotFoundError as exc:
        models = sorted({found.parts[-3] for found in repository.glob(f"*/[0-9]*/{MANIFEST_FILE}")})
        raise ConfigurationError(
            f"{path}: no such file; the models of this repository are {', '.join(models) or 'none'}: check the folder "
            "and the name, or export the model"
        ) from exc
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise ConfigurationError(f"{path}: not a model config ({exc}); export the model again") from exc
