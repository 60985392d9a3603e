"""Scores pairs through Triton's gRPC endpoint."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import tritonclient.grpc as triton

from triton_rerank import _ranking, _wire
from triton_rerank._plan import Limits, plan
from triton_rerank._scored import PairRequest, Scored
from triton_rerank._status import error_for
from triton_rerank.contract import MAX_LENGTH, MAX_REQUEST_BYTES, TOKENIZER_SUFFIX
from triton_rerank.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    RerankError,
)
from triton_rerank.scorers.base import Call
from triton_rerank.scorers.channel import (
    TritonOptions,
    channel_arguments,
    check_target,
    credentials,
    grpc_target,
    needs_lookup,
)
from triton_rerank.scorers.model_config import check_model, parse_model_info, with_step
from triton_rerank.scorers.transport import InferRequest, SyncTransport, Transport
from triton_rerank.scorers.transport_aio import AioTransport
from triton_rerank.types import ModelInfo

_PAIR_OVERHEAD_BYTES = 8  # BYTES tensors carry a 4-byte length before each of the two texts
_CONCURRENCY = 8  # sub-requests under way at a time
_VERSION_ROUNDS = 12  # how often sub-requests are asked again that another version answered
_VERSION_PATIENCE = 3  # rounds in which the wanted version did not come


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
        self._address: str | None = None  # of the target, as gRPC resolves it
        self._process: int | None = None  # the one that has the connections
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
        info = parse_model_info(self.model, await self._config(self.model, call))
        self._info = with_step(info, await self._config(self.model + TOKENIZER_SUFFIX, call))
        return self._info

    async def is_ready(self, call: Call) -> bool:
        """Ask; a server that does not answer has no model ready."""
        try:
            return bool(await self._ask("is_model_ready", self.model, call=call))
        except RerankError:
            return False

    def close(self) -> None:
        """Close the channel of the sync client; a forked process leaves it alone, since closing it there could hang."""
        if self._process == os.getpid() and self._sync is not None:
            transport, self._sync = self._sync, None
            transport.close()

    async def aclose(self) -> None:
        """Close the channels of the sync client and of this event loop."""
        self.close()
        if self._process == os.getpid():
            transport = self._aio.pop(asyncio.get_running_loop(), None)
            if transport is not None:
                await transport.close()

    async def _score(self, request: PairRequest, call: Call, info: ModelInfo) -> Scored:
        for_padding = self.options.split == "padding" or (self.options.split == "auto" and not info.queue_bounded)
        groups = plan(
            [len(document) for document in request.documents],
            overhead=len(request.query) + _PAIR_OVERHEAD_BYTES,
            limits=Limits(info.max_batch_size, MAX_REQUEST_BYTES, info.length_ladder if for_padding else ()),
        )
        version, answers = await self._ask_all(request, groups, call, self._concurrency(info))
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

    def _concurrency(self, info: ModelInfo) -> int:
        # In front of a bounded queue, Triton 2.51 does not prefetch, and misses the moment when a model instance
        # becomes free: requests that wait in the queue may be noticed half a second late (docs/LOG.md).
        return self.options.concurrency or (self.target.count(",") + 1 if info.queue_bounded else _CONCURRENCY)

    async def _ask_all(
        self, request: PairRequest, groups: Sequence[Sequence[int]], call: Call, concurrency: int
    ) -> tuple[str, list[triton.InferResult]]:
        """Answers of one version: while servers are being updated, parts of a request may meet different ones.

        Parts that another version answered than most are asked again. If the version of most does not come any more,
        it was replaced meanwhile, and the one that comes is wanted of all.
        """
        transport = await self._transport(call)
        answers: dict[int, triton.InferResult] = {}
        asked = list(range(len(groups)))
        wanted, missed = "", 0
        for _ in range(1 + _VERSION_ROUNDS):
            parts = [self._infer_request(request, groups[place], call) for place in asked]
            answers.update(zip(asked, await transport.infer_all(parts, concurrency), strict=True))
            versions = {place: answer.get_response().model_version for place, answer in answers.items()}
            came = Counter(versions[place] for place in asked)
            missed = 0 if wanted in came else missed + 1
            if not wanted or missed == _VERSION_PATIENCE:
                wanted, missed = max(came, key=lambda version: (came[version], len(version), version)), 0
            asked = [place for place, version in versions.items() if version != wanted]
            if not asked:
                return wanted, [answers[place] for place in range(len(groups))]
        raise InvalidResponseError(
            f"{self.model!r} at {self.target}: versions {', '.join(sorted(set(versions.values())))} answered parts of "
            "one request, and their logits do not compare; activate the same version on every server"
        )

    def _infer_request(self, request: PairRequest, group: Sequence[int], call: Call) -> InferRequest:
        documents = [request.documents[index] for index in group]
        arguments = {
            "model_name": self.model,
            "inputs": _inputs(request.query, documents),
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
        transport = await self._transport(call)
        timeout_s = call.deadline.left_s(doing=f"Triton was asked ({method})")
        headers = {**self.options.headers, **call.headers}
        return await transport.ask(method, *arguments, timeout_s=timeout_s, headers=headers)

    async def _transport(self, call: Call) -> Transport:
        if self._process not in (None, os.getpid()):
            raise ConfigurationError(
                f"{self._name} has connections of process {self._process} and is used in its fork {os.getpid()}: gRPC "
                "does not survive a fork; make the client there (in gunicorn's post_fork, for example)"
            )
        if self._address is None:
            self._address = await self._look_up(call)
        self._process = os.getpid()
        if call.runtime.is_async:
            return self._aio_transport()
        with self._lock:
            if self._sync is None:
                self._sync = SyncTransport(self._connect, self._translate)
            return self._sync

    async def _look_up(self, call: Call) -> str:
        if not needs_lookup(self.target):
            return grpc_target(self.target)
        doing = f"the names in {self.target!r} were looked up"
        left_s = call.deadline.left_s(doing=doing)
        try:
            return await call.runtime.in_thread(lambda: grpc_target(self.target), timeout_s=left_s)
        except TimeoutError as exc:
            raise DeadlineExceededError(f"timeout_s of {call.deadline.timeout_s:g} s passed before {doing}") from exc

    def _aio_transport(self) -> Transport:
        loop = asyncio.get_running_loop()
        if loop not in self._aio:
            self._aio[loop] = AioTransport(self._connect, self._translate)
        transport: Transport = self._aio[loop]
        return transport

    def _connect(self, client: Any = triton.InferenceServerClient) -> Any:
        return client(
            self._address,
            creds=credentials(self.options.tls),
            channel_args=channel_arguments(self.target, self.options),
        )

    def _translate(self, exc: triton.InferenceServerException, request_id: str | None) -> RerankError:
        status, message = str(exc.status() or "UNKNOWN"), str(exc.message())
        return error_for(status, message, target=self.target, model=self.model, request_id=request_id)


def _decode(answer: triton.InferResult, n_documents: int) -> _wire.PairScores:
    return _wire.decode_scores({name: answer.as_numpy(name) for name in _wire.OUTPUTS}, n_documents=n_documents)


def _inputs(query: bytes, documents: Sequence[bytes]) -> list[triton.InferInput]:
    if not _RAW_CONTENT_IS_KNOWN:
        return [_input(name, array) for name, array in _wire.encode_pairs(query, documents).items()]
    inputs = []
    for name, content in _wire.serialise(query, documents).items():
        tensor = triton.InferInput(name, [len(documents), 1], "BYTES")
        tensor._raw_content = content
        inputs.append(tensor)
    return inputs


def _input(name: str, array: Any) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor


def _is_raw_content_known() -> bool:
    """Does this tritonclient keep bytes where we would put them? Its own way costs 0.1 ms a hundred pairs."""
    query, documents = b"q", [b"", "ü\0".encode()]
    expected = _wire.serialise(query, documents)
    made = {name: _input(name, array) for name, array in _wire.encode_pairs(query, documents).items()}
    return all(getattr(made[name], "_raw_content", None) == content for name, content in expected.items())


_RAW_CONTENT_IS_KNOWN = _is_raw_content_known()
