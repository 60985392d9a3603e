"""What a model's name may be, and what its config.pbtxt says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from triton_rerank.contract import (
    ACTIVATION,
    INSTRUCTION,
    INSTRUCTION_PLACE,
    LENGTH_LADDER,
    MAX_LENGTH,
    PRECISION,
    PROMPT,
    SOURCE,
)
from triton_rerank.errors import ConfigurationError, NoRerankerError
from triton_rerank.types import Activation, ModelInfo

_ACTIVATIONS = ("identity", "sigmoid")
_PROMPT_BYTES_PER_TOKEN = 4  # fewer than the prompts have in their own vocabularies
_LONGEST_NAME = 255  # of a folder, and thus of a model


def check_model(model: object) -> str:
    """Check the form of a model's name; no server is asked.

    Raises:
        ConfigurationError: it cannot be one.
    """
    if not isinstance(model, str) or not model.isprintable() or not 0 < len(model) <= _LONGEST_NAME:
        raise ConfigurationError(
            f"model is {model!r:.80}: it must be the public model name, as in the model repository, of at most "
            f"{_LONGEST_NAME} characters"
        )
    return model


def parse_model_info(model: str, config: Any) -> ModelInfo:
    """Read what the client needs from an ensemble's config.

    Args:
        model: public model name.
        config: ``ModelConfig`` message, as the server sends it or as it stands in config.pbtxt.

    Returns:
        All of it but what `with_step` adds.

    Raises:
        NoRerankerError: the config has none of a reranker's parameters, or not all.
        ConfigurationError: a parameter has a value that is not known.
    """
    parameters: Mapping[str, str] = {key: value.string_value for key, value in config.parameters.items()}
    missing = [name for name in (ACTIVATION, MAX_LENGTH, PRECISION, SOURCE) if name not in parameters]
    if missing:
        raise NoRerankerError(
            f"model {model!r} is not one that triton-rerank-export wrote: its config.pbtxt has no parameter "
            f"{', '.join(missing)}; ask for the ensemble, not for its steps"
        )
    activation, max_batch_size = parameters[ACTIVATION], int(config.max_batch_size)
    if activation not in _ACTIVATIONS or not parameters[MAX_LENGTH].isdecimal() or max_batch_size < 1:
        raise ConfigurationError(
            f"model {model!r} has activation {activation!r}, max_length {parameters[MAX_LENGTH]!r}, max_batch_size "
            f"{max_batch_size}: activation must be one of {', '.join(_ACTIVATIONS)} and the others whole numbers from 1"
        )
    versions = config.version_policy.specific.versions
    return ModelInfo(
        name=model,
        activation=cast("Activation", activation),
        max_length=int(parameters[MAX_LENGTH]),
        max_batch_size=max_batch_size,
        precision=parameters[PRECISION],
        source=parameters[SOURCE],
        version=str(max(versions)) if versions else "",
    )


def with_step(info: ModelInfo, step: Any) -> ModelInfo:
    """Add what stands in the config of the ensemble's first step: length ladder, whether queues are bounded, prompt.

    Args:
        info: of the ensemble.
        step: ``ModelConfig`` message of the tokenizer step.

    Raises:
        ConfigurationError: the ladder is missing, or is no list of lengths.
    """
    rungs = step.parameters[LENGTH_LADDER].string_value.split(",") if LENGTH_LADDER in step.parameters else []
    if not rungs or not all(rung.isdecimal() for rung in rungs):
        raise ConfigurationError(
            f"the configs of {info.name!r} are not as triton-rerank-export writes them ({step.name!r} has the "
            f"{LENGTH_LADDER} {','.join(rungs)!r:.80}); export the model again"
        )
    policy = step.dynamic_batching.default_queue_policy
    bounded = policy.max_queue_size or policy.default_timeout_microseconds or policy.allow_timeout_override
    pieces = [
        value.string_value for key, value in step.parameters.items() if key.startswith(PROMPT) or key == INSTRUCTION
    ]
    prompt = -(-sum(len(piece.encode()) for piece in pieces) // _PROMPT_BYTES_PER_TOKEN)
    return replace(
        info,
        length_ladder=tuple(map(int, rungs)),
        queue_bounded=bool(bounded),
        prompt_tokens=prompt,
        takes_instruction=any(INSTRUCTION_PLACE in piece for piece in pieces),
    )
