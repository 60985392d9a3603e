"""Scores pairs through Triton's gRPC endpoint."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, cast
from weakref import WeakKeyDictionary

import tritonclient.grpc as triton

from triton_rerank import _ranking, _wire
from triton_rerank._plan import Limits, plan
from triton_rerank._runtime import Runtime
from triton_rerank._scored import PairRequest, Scored
from triton_rerank._status import error_for
from triton_rerank.contract import (
    ACTIVATION,
    LENGTH_LADDER,
    MAX_LENGTH,
    MAX_REQUEST_BYTES,
    PRECISION,
    SOURCE,
    TOKENIZER_SUFFIX,
)
from triton_rerank.errors import ConfigurationError, InvalidRequestError, InvalidResponseError, RerankError
from triton_rerank.scorers.base import Call
from triton_rerank.scorers.channel import TritonOptions, channel_arguments, check_target, credentials, grpc_target
from triton_rerank.scorers.transport import InferRequest, SyncTransport, Transport
from triton_rerank.scorers.transport_aio import AioTransport
from triton_rerank.types import Activation, ModelInfo

_ACTIVATIONS = ("identity", "sigmoid")
_PAIR_OVERHEAD_BYTES = 8  # BYTES tensors carry a 4-byte length before each of the two texts
_LONGEST_NAME = 255  # of a folder, and thus of a model
_VERSION_ROUNDS = 4  # how often sub-requests are asked again that another version answered


class TritonScorer:
    """One model on one server or many; safe to share between threads, as gRPC channels are.

    Args:
        target: ``host:port`` of Triton's gRPC endpoint, several with commas between, or a DNS name with many addresses;
            calls go round all of them that answer.
        model: public model name, the ensemble's.
        name: what results and logs call it; None means ``triton(target)``.
        options: TLS, headers, retries and so on.

    Raises:
        ConfigurationError: the target or the model's name is not of that form.
    """

    def __init__(
        self, target: str, model: str, *, name: str | None = None, options: TritonOptions | None = None
    ) -> None:
        self.target = check_target(target)
        self.model = check_model(model)
        self.options = options or TritonOptions()
        self._name = name or f"triton({target})"
        self._info: ModelInfo | None = None
        self._lock = Lock()
        self._sync: SyncTransport | None = None
        self._aio: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    @property
    def name(self) -> str:
        """What results and logs call it."""
        return self._name

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Split the request, send its parts, merge the answers.

        Raises:
            InvalidResponseError: an answer does not fit the contract, or servers keep answering with other versions.
            RerankError: as the status table says; ``request_id`` is the id that Triton logged.
        """
        known = self._info
        if known is None:
            return await self._score(request, call, await self.model_info(call))
        try:
            return await self._score(request, call, known)
        except InvalidRequestError:  # the model may have been exported anew, with other limits
            fresh = await self.model_info(call)
            if fresh == known:
                raise
            return await self._score(request, call, fresh)

    async def model_info(self, call: Call) -> ModelInfo:
        """Read the configs of the ensemble and of its first step from the server.

        Raises:
            ConfigurationError: unknown model, or one that was not written by triton-rerank-export.
            RerankError: as the status table says.
        """
        config = await self._config(self.model, call)
        info = parse_model_info(self.model, config)
        ladder = (await self._config(self.model + TOKENIZER_SUFFIX, call)).parameters[LENGTH_LADDER].string_value
        self._info = replace(info, length_ladder=tuple(int(rung) for rung in ladder.split(",") if rung.isdecimal()))
        return self._info

    async def is_ready(self, call: Call) -> bool:
        """Ask; a server that does not answer has no model ready."""
        try:
            return bool(await self._ask("is_model_ready", self.model, call=call))
        except RerankError:
            return False

    def close(self) -> None:
        """Close the channel of the sync client."""
        transport, self._sync = self._sync, None
        if transport is not None:
            transport.close()

    async def aclose(self) -> None:
        """Close the channels of the sync client and of this event loop."""
        self.close()
        transport = self._aio.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.close()

    async def _score(self, request: PairRequest, call: Call, info: ModelInfo) -> Scored:
        groups = plan(
            [len(document) for document in request.documents],
            overhead=len(request.query) + _PAIR_OVERHEAD_BYTES,
            limits=Limits(info.max_batch_size, MAX_REQUEST_BYTES, info.length_ladder),
        )
        version, answers = await self._ask_all(request, groups, call)
        if info.version not in ("", version):
            info = await self.model_info(call)
        decoded = [_decode(answer, len(group)) for answer, group in zip(answers, groups, strict=True)]
        scores = _wire.merge(list(zip(groups, decoded, strict=True)), len(request.documents))
        return Scored(
            model=self.model,
            served_by=self._name,
            logits=scores.logits,
            scores=_ranking.activate(scores.logits, info.activation),
            truncated=scores.truncated,
            token_count=int(scores.token_count.sum()),
            model_version=version,
            requests=len(groups),
        )

    async def _ask_all(
        self, request: PairRequest, groups: Sequence[Sequence[int]], call: Call
    ) -> tuple[str, list[triton.InferResult]]:
        """Answers of one version: while servers are being updated, parts of a request may meet different ones."""
        transport = self._transport(call.runtime)
        answers: dict[int, triton.InferResult] = {}
        asked = list(range(len(groups)))
        for _ in range(1 + _VERSION_ROUNDS):
            parts = [self._infer_request(request, groups[place], call) for place in asked]
            answers.update(zip(asked, await transport.infer_all(parts, self.options.concurrency), strict=True))
            versions = {place: answer.get_response().model_version for place, answer in answers.items()}
            newest = max(versions.values(), key=lambda version: (len(version), version))
            asked = [place for place, version in versions.items() if version != newest]
            if not asked:
                return newest, [answers[place] for place in range(len(groups))]
        raise InvalidResponseError(
            f"{self.model!r} at {self.target}: versions {', '.join(sorted(set(versions.values())))} answered parts of "
            "one request, and their logits do not compare; activate the same version on every server"
        )

    def _infer_request(self, request: PairRequest, group: Sequence[int], call: Call) -> InferRequest:
        documents = [request.documents[index] for index in group]
        tensors = _wire.encode_pairs(request.query, documents)
        arguments = {
            "model_name": self.model,
            "inputs": [_input(name, array) for name, array in tensors.items()],
            "outputs": [triton.InferRequestedOutput(name) for name in _wire.OUTPUTS],
            "request_id": uuid.uuid4().hex,
            "headers": {**self.options.headers, **call.headers},
            "compression_algorithm": self.options.compression,
            "parameters": None if request.max_length is None else {MAX_LENGTH: request.max_length},
        }
        return InferRequest(arguments, call.deadline, doing=f"{len(documents)} pairs were sent")

    async def _config(self, model: str, call: Call) -> Any:
        return (await self._ask("get_model_config", model, call=call)).config

    async def _ask(self, method: str, *arguments: Any, call: Call) -> Any:
        timeout_s = call.deadline.left_s(doing=f"{method} was asked")
        headers = {**self.options.headers, **call.headers}
        return await self._transport(call.runtime).ask(method, *arguments, timeout_s=timeout_s, headers=headers)

    def _transport(self, runtime: Runtime) -> Transport:
        if runtime.is_async:
            return self._aio_transport()
        with self._lock:
            if self._sync is None:
                self._sync = SyncTransport(self._connect, self._translate)
            return self._sync

    def _aio_transport(self) -> Transport:
        loop = asyncio.get_running_loop()
        if loop not in self._aio:
            self._aio[loop] = AioTransport(self._connect, self._translate)
        transport: Transport = self._aio[loop]
        return transport

    def _connect(self, client: Any = triton.InferenceServerClient) -> Any:
        return client(
            grpc_target(self.target),
            creds=credentials(self.options.tls),
            channel_args=channel_arguments(self.target, self.options),
        )

    def _translate(self, exc: triton.InferenceServerException, request_id: str | None) -> RerankError:
        status, message = str(exc.status() or "UNKNOWN"), str(exc.message())
        return error_for(status, message, target=self.target, model=self.model, request_id=request_id)


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
        All of it but ``length_ladder``, which stands in the config of the tokenizer step.

    Raises:
        ConfigurationError: a parameter is missing or has a value that is not known.
    """
    parameters: Mapping[str, str] = {key: value.string_value for key, value in config.parameters.items()}
    missing = [name for name in (ACTIVATION, MAX_LENGTH, PRECISION, SOURCE) if name not in parameters]
    if missing:
        raise ConfigurationError(
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


def _decode(answer: triton.InferResult, n_documents: int) -> _wire.PairScores:
    return _wire.decode_scores({name: answer.as_numpy(name) for name in _wire.OUTPUTS}, n_documents=n_documents)


def _input(name: str, array: Any) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor
