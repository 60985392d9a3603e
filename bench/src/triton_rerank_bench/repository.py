"""Reads a model repository: which model it holds, where its files lie, how its steps are set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_rerank.contract import (
    ENCODER_SUFFIX,
    LENGTH_LADDER,
    MAX_LENGTH,
    PAD_TOKEN_ID,
    PRECISION,
    TOKENIZER_SUFFIX,
)
from triton_rerank_bench.errors import BenchError

CONFIG = "config.pbtxt"
VERSION = "1"
DEFAULT_MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class ModelFiles:
    """One model of a repository, as its three configs describe it.

    Attributes:
        name: public model name, the ensemble's.
        precision: "fp32", "fp16", "int8" or "bf16".
        backend: Triton's, of the encoder.
        max_length: tokens of the longest pair.
        length_ladder: padded lengths, ascending.
        pad_token_id: id that fills a row up.
        tokenizer_file: tokenizer.json.
        encoder_file: the ONNX graph.
        encoder_parameters: the encoder's parameters in config.pbtxt, such as intra_op_thread_count.
    """

    name: str
    precision: str
    backend: str
    max_length: int
    length_ladder: tuple[int, ...]
    pad_token_id: int
    tokenizer_file: Path
    encoder_file: Path
    encoder_parameters: Mapping[str, str]


@dataclass(frozen=True)
class _Config:
    """What is needed of one config.pbtxt."""

    platform: str
    backend: str
    model_file: str
    parameters: Mapping[str, str]


def read_model(repository: Path, name: str | None = None) -> ModelFiles:
    """Read the configs of one model.

    Args:
        repository: Triton model repository, as triton-rerank-export writes it.
        name: public model name; None means the only one that is built there.

    Raises:
        BenchError: no such repository or model, more than one to choose from, or a file is missing.
    """
    name = name or _only_model(repository)
    tokenizer_folder, encoder_folder = repository / (name + TOKENIZER_SUFFIX), repository / (name + ENCODER_SUFFIX)
    ensemble, tokenizer, encoder = (
        _read_config(folder / CONFIG) for folder in (repository / name, tokenizer_folder, encoder_folder)
    )
    try:
        return ModelFiles(
            name=name,
            precision=ensemble.parameters[PRECISION],
            backend=encoder.backend,
            max_length=int(tokenizer.parameters[MAX_LENGTH]),
            length_ladder=tuple(int(rung) for rung in tokenizer.parameters[LENGTH_LADDER].split(",")),
            pad_token_id=int(tokenizer.parameters[PAD_TOKEN_ID]),
            tokenizer_file=_built(tokenizer_folder / VERSION / "tokenizer.json"),
            encoder_file=_built(encoder_folder / VERSION / encoder.model_file),
            encoder_parameters=encoder.parameters,
        )
    except (KeyError, ValueError) as exc:
        raise BenchError(
            f"{repository}: the configs of {name} lack or garble a parameter ({exc!r}); export it again"
        ) from exc


def _only_model(repository: Path) -> str:
    names = [path.parent.name for path in sorted(repository.glob(f"*/{CONFIG}")) if _is_built_ensemble(path.parent)]
    if not names:
        raise BenchError(
            f"--model-repository {repository}: looked for a built model there (<model>/{CONFIG} and "
            f"<model>{ENCODER_SUFFIX}/{VERSION}/{DEFAULT_MODEL_FILE}), and found none; `make export` builds one"
        )
    if len(names) > 1:
        raise BenchError(f"--model-repository {repository}: holds {', '.join(names)}; say which by --model")
    return names[0]


def _is_built_ensemble(folder: Path) -> bool:
    if _read_config(folder / CONFIG).platform != "ensemble":
        return False
    encoder = folder.with_name(folder.name + ENCODER_SUFFIX)
    return (encoder / VERSION / _read_config(encoder / CONFIG).model_file).is_file()


def _read_config(path: Path) -> _Config:
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise BenchError(f"{path}: looked for a model config there ({exc}); `make export` writes one") from exc
    return _Config(
        platform=config.platform,
        backend=config.backend,
        model_file=config.default_model_filename or DEFAULT_MODEL_FILE,
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )


def _built(path: Path) -> Path:
    if not path.is_file():
        raise BenchError(f"{path}: looked for this file, and it is not there; `make export` builds it")
    return path
