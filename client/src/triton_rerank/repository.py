"""The form of a model repository on disk; the scorer in process, the server, export and bench read it here.

A model is three folders, each with a config.pbtxt and a folder per version: the two steps, and the ensemble that has
the public name. The ensemble's config names the active version, and the steps with the versions that it uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triton_rerank.contract import CONFIG_FILE, ENCODER_SUFFIX, ENGINE, MANIFEST_FILE, TOKENIZER_SUFFIX
from triton_rerank.errors import ConfigurationError
from triton_rerank.triton.model_config import parse_model_info, with_step
from triton_rerank.types import ModelInfo

_GRAPH_FILE = "model.onnx"  # Triton's default


@dataclass(frozen=True, slots=True)
class Artefacts:
    """The active version of a model, as its three configs describe it.

    Attributes:
        info: as a server would state it.
        tokenizer_file: ``tokenizer.json``.
        encoder_file: the graph, such as ``model.onnx``.
        engine: the encoder's: "onnxruntime", "openvino" or "tensorrt".
        parameters: of the encoder's config: its engine's settings.
        inputs: names of the graph's inputs.
        tokenizer_parameters: of the tokenizer step's config.
    """

    info: ModelInfo
    tokenizer_file: Path
    encoder_file: Path
    engine: str
    parameters: Mapping[str, str]
    inputs: tuple[str, ...]
    tokenizer_parameters: Mapping[str, str]


def exported_models(repository: Path) -> list[str]:
    """Public names of the models that export put into a repository, sorted; other folders are left out."""
    return sorted({path.parts[-3] for path in repository.glob(f"*/[0-9]*/{MANIFEST_FILE}")})


def version_folders(repository: Path, folder: str) -> dict[int, Path]:
    """Version -> folder, ascending, of an ensemble or a step, finished or not."""
    found = (path for path in (repository / folder).glob("[0-9]*") if path.name.isdecimal())
    return {int(path.name): path for path in sorted(found, key=lambda path: int(path.name))}


def manifest_files(repository: Path, model: str) -> dict[int, Path]:
    """Version -> manifest.json, ascending, of a public model name; empty if export did not put it there."""
    files = {version: path / MANIFEST_FILE for version, path in version_folders(repository, model).items()}
    return {version: path for version, path in files.items() if path.is_file()}


def read_config(repository: Path, folder: str) -> Any:
    """Parse the config.pbtxt of an ensemble or a step.

    Args:
        repository: model repository as written by triton-rerank-export.
        folder: public model name, or that of a step.

    Returns:
        A ``ModelConfig`` message, with its name.

    Raises:
        ConfigurationError: it is missing, or is not one.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = repository / folder / CONFIG_FILE
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except FileNotFoundError as exc:
        raise ConfigurationError(
            f"{path}: no such file; the models of this repository are "
            f"{', '.join(exported_models(repository)) or 'none'}: check the folder and the name, or export the model"
        ) from exc
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise ConfigurationError(f"{path}: not a model config ({exc}); export the model again") from exc
    config.name = config.name or folder  # Triton takes the folder's name too
    return config


def active_version(repository: Path, model: str) -> int:
    """The version that the ensemble's config serves.

    Raises:
        ConfigurationError: no config, or one that names another number of versions than one.
    """
    return _active(read_config(repository, model), repository)


def read_artefacts(repository: Path, model: str) -> Artefacts:
    """Read the configs of an ensemble and of its two steps; the files themselves are not opened.

    Args:
        repository: model repository as written by triton-rerank-export.
        model: public model name.

    Raises:
        ConfigurationError: a config is missing, broken, or not as export writes it.
    """
    ensemble = read_config(repository, model)
    info = parse_model_info(model, ensemble)
    steps = {step.model_name: step.model_version for step in ensemble.ensemble_scheduling.step}
    try:
        tokenizer, encoder = (_step(model, suffix, steps) for suffix in (TOKENIZER_SUFFIX, ENCODER_SUFFIX))
        info = replace(info, version=str(_active(ensemble, repository)))
        versions = {name: repository / name / str(steps[name]) for name in (tokenizer, encoder)}
        return _artefacts(info, read_config(repository, tokenizer), read_config(repository, encoder), versions)
    except (KeyError, ValueError) as exc:
        raise ConfigurationError(
            f"{repository}: the configs of {model!r} are not as triton-rerank-export writes them ({exc!r}); "
            "export the model again"
        ) from exc


def encoder_engine(encoder: Any) -> str:
    """The library that computes an encoder: our backend's parameter, or a native backend's own name.

    Args:
        encoder: its ``ModelConfig``.
    """
    return (encoder.parameters[ENGINE].string_value if ENGINE in encoder.parameters else "") or str(encoder.backend)


def _active(ensemble: Any, repository: Path) -> int:
    versions = list(ensemble.version_policy.specific.versions)
    if len(versions) != 1:
        raise ConfigurationError(
            f"{repository / ensemble.name / CONFIG_FILE}: not as triton-rerank-export writes them: it serves the "
            f"versions {versions}, and an ensemble of ours serves 1; export again"
        )
    return int(versions[0])


def _step(model: str, suffix: str, steps: Mapping[str, int]) -> str:
    """Name of the step; one that export has just put beside the old one has more between model and suffix."""
    (name,) = [step for step in steps if step.startswith(model) and step.endswith(suffix)] or [""]
    if not name:
        raise KeyError(model + suffix)
    return name


def _artefacts(info: ModelInfo, tokenizer: Any, encoder: Any, versions: Mapping[str, Path]) -> Artefacts:
    return Artefacts(
        info=with_step(info, tokenizer),
        tokenizer_file=versions[tokenizer.name] / "tokenizer.json",
        encoder_file=versions[encoder.name] / (encoder.default_model_filename or _GRAPH_FILE),
        engine=encoder_engine(encoder),
        parameters={key: value.string_value for key, value in encoder.parameters.items()},
        inputs=tuple(tensor.name for tensor in encoder.input),
        tokenizer_parameters={key: value.string_value for key, value in tokenizer.parameters.items()},
    )
