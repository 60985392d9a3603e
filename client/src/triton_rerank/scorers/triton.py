"""Scores pairs through Triton's gRPC endpoint."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import tritonclient.grpc as triton

from triton_rerank import _wire
from triton_rerank._deadline import Deadline
from triton_rerank._status import error_for
from triton_rerank.contract import ACTIVATION, MAX_LENGTH, PRECISION, SOURCE
from triton_rerank.errors import ConfigurationError
from triton_rerank.types import Activation, ModelInfo

_ACTIVATIONS = ("identity", "sigmoid")


class TritonScorer:
    """One model on one server; safe to share between threads, as gRPC channels are.

    Args:
        target: ``host:port`` of Triton's gRPC endpoint.
        model: public model name, the ensemble's.

    Raises:
        ConfigurationError: the target is not of that form.
    """

    def __init__(self, target: str, model: str) -> None:
        if not target or "://" in target:
            raise ConfigurationError(
                f"target is {target!r}: it must be host:port of Triton's gRPC endpoint, without a scheme"
            )
        self.target = target
        self.model = model
        self._client = triton.InferenceServerClient(target)

    def model_info(self, deadline: Deadline) -> ModelInfo:
        """Read the ensemble's config from the server.

        Raises:
            ConfigurationError: unknown model, or one that was not written by triton-rerank-export.
            RerankError: as the status table says.
        """
        timeout_s = deadline.left_s(doing="the model's config was read")
        with self._translated(None):
            config = self._client.get_model_config(self.model, client_timeout=timeout_s).config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        return parse_model_info(self.model, int(config.max_batch_size), parameters)

    def score_pairs(self, query: bytes, documents: Sequence[bytes], deadline: Deadline) -> _wire.PairScores:
        """Send one inference request.

        Raises:
            InvalidResponseError: the answer does not fit the contract.
            RerankError: as the status table says; ``request_id`` is the id that Triton logged.
        """
        request_id = uuid.uuid4().hex
        inputs = [_input(name, array) for name, array in _wire.encode_pairs(query, documents).items()]
        outputs = [triton.InferRequestedOutput(name) for name in _wire.OUTPUTS]
        timeout_s = deadline.left_s(doing=f"{len(documents)} pairs were sent")
        with self._translated(request_id):
            result = self._client.infer(
                self.model, inputs, outputs=outputs, request_id=request_id, client_timeout=timeout_s
            )
        return _wire.decode_scores({n: result.as_numpy(n) for n in _wire.OUTPUTS}, n_documents=len(documents))

    def is_server_ready(self, timeout_s: float) -> bool:
        """Ask; a server that does not answer is not ready."""
        try:
            return bool(self._client.is_server_ready(client_timeout=timeout_s))
        except triton.InferenceServerException:
            return False

    def is_model_ready(self, timeout_s: float) -> bool:
        """Ask; a server that does not answer has no model ready."""
        try:
            return bool(self._client.is_model_ready(self.model, client_timeout=timeout_s))
        except triton.InferenceServerException:
            return False

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    @contextmanager
    def _translated(self, request_id: str | None) -> Iterator[None]:
        try:
            yield
        except triton.InferenceServerException as exc:
            status, message = str(exc.status() or "UNKNOWN"), str(exc.message())
            raise error_for(status, message, target=self.target, model=self.model, request_id=request_id) from exc


def parse_model_info(model: str, max_batch_size: int, parameters: Mapping[str, str]) -> ModelInfo:
    """Read what the client needs from an ensemble's config.

    Args:
        model: public model name.
        max_batch_size: as in the config.
        parameters: the config's ``parameters``, name -> string.

    Raises:
        ConfigurationError: a parameter is missing or has a value that is not known.
    """
    missing = [name for name in (ACTIVATION, MAX_LENGTH, PRECISION, SOURCE) if name not in parameters]
    if missing:
        raise ConfigurationError(
            f"model {model!r} is not one that triton-rerank-export wrote: its config.pbtxt has no parameter "
            f"{', '.join(missing)}; ask for the ensemble, not for its steps"
        )
    activation = parameters[ACTIVATION]
    if activation not in _ACTIVATIONS or not parameters[MAX_LENGTH].isdecimal() or max_batch_size < 1:
        raise ConfigurationError(
            f"model {model!r} has activation {activation!r}, max_length {parameters[MAX_LENGTH]!r}, max_batch_size "
            f"{max_batch_size}: activation must be one of {', '.join(_ACTIVATIONS)} and the others whole numbers from 1"
        )
    return ModelInfo(
        name=model,
        activation=cast("Activation", activation),
        max_length=int(parameters[MAX_LENGTH]),
        max_batch_size=max_batch_size,
        precision=parameters[PRECISION],
        source=parameters[SOURCE],
    )


def _input(name: str, array: Any) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor
