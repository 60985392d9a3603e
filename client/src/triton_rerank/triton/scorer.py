"""Scores pairs through Triton's gRPC endpoint."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tritonclient.grpc import service_pb2

from triton_rerank.contract import (
    DEFAULT_GRPC_TARGET,
    INSTRUCTION,
    MAX_DOCUMENT_TOKENS,
    MAX_LENGTH,
    MAX_QUERY_TOKENS,
    MAX_REQUEST_BYTES,
    TOKENIZER_SUFFIX,
)
from triton_rerank.core.ranking import activate
from triton_rerank.core.remade import Remade
from triton_rerank.core.scorer import Call, PairRequest, Scored, Scorer
from triton_rerank.errors import (
    ConfigurationError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotReadyError,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.triton import wire
from triton_rerank.triton.channel import COMPRESSION, TritonOptions
from triton_rerank.triton.connections import Connections
from triton_rerank.triton.model_config import check_model, parse_model_info, with_step
from triton_rerank.triton.plan import Limits, plan
from triton_rerank.triton.proxies import proxy_of
from triton_rerank.triton.status import error_for, most_pairs
from triton_rerank.triton.targets import check_target
from triton_rerank.triton.transport import InferRequest, Metadata
from triton_rerank.types import ModelInfo

_PAIR_OVERHEAD_BYTES = 8  # BYTES tensors carry a 4-byte length before each of the two texts
_CONCURRENCY = 8  # sub-requests under way at a time
_VERSION_ROUNDS = 12  # how often sub-requests are asked again that another version answered
_VERSION_PATIENCE = 3  # rounds in which the wanted version did not come
_CONFIG_ROUNDS = 32  # how often a config is asked for that another server may have
_Input = service_pb2.ModelInferRequest.InferInputTensor
_OUTPUTS = [service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in wire.OUTPUTS]


class TritonScorer(Remade):
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
        self.name = name or f"triton({target})"
        self._info: ModelInfo | None = None
        self._connections = Connections(self.target, self.options, self._translate, self.name)

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Split the request, send its parts, merge the answers.

        Raises:
            InvalidResponseError: an answer does not fit the contract, or servers keep answering with other versions.
            RerankError: as the status table says; ``request_id`` is the id that Triton logged.
        """
        places = self._connections.places
        try:
            return await self._score_known(request, call)
        except ServerUnavailableError:
            if not await self._connections.moved(call, since=places):
                raise
            return await self._score_known(request, call)

    async def model_info(self, call: Call) -> ModelInfo:
        """Read the configs of the ensemble and of its first step from the server.

        Raises:
            NoRerankerError: a model that was not written by triton-rerank-export, or a step of one that was.
            ConfigurationError: unknown model.
            RerankError: as the status table says.
        """
        return await self._read_info(call)

    async def is_ready(self, call: Call) -> bool:
        """Ask; a server that does not answer has no model ready."""
        try:
            return bool((await self._ask("ModelReady", service_pb2.ModelReadyRequest(name=self.model), call)).ready)
        except RerankError:
            return False

    def close(self) -> None:
        """Close the channel of the sync client; a forked process leaves it alone."""
        self._connections.close()

    async def aclose(self) -> None:
        """Close the channels of the sync client and of this event loop."""
        await self._connections.aclose()

    async def answers(self, call: Call) -> bool:
        """True if something there speaks Triton's protocol, whatever it has loaded."""
        try:
            await self._ask("ServerLive", service_pb2.ServerLiveRequest(), call)
        except RerankError as exc:
            return "protocol is restricted" in str(exc)  # Triton's own words; nothing else says them
        return True

    async def _score_known(self, request: PairRequest, call: Call) -> Scored:
        known = self._info or await self.model_info(call)
        try:
            return await self._score(request, call, known)
        except InvalidRequestError as exc:  # the model may have been exported anew, with other limits
            fresh = await self.model_info(call)
            # another server may have answered than refused, with limits of its own
            fresh = replace(fresh, max_batch_size=min(fresh.max_batch_size, most_pairs(exc) or fresh.max_batch_size))
            if fresh == known:
                raise
            return await self._score(request, call, fresh)

    async def _score(self, request: PairRequest, call: Call, info: ModelInfo) -> Scored:
        for_padding = self.options.split == "padding" or (self.options.split == "auto" and not info.queue_bounded)
        groups = plan(
            [len(document) for document in request.documents],
            overhead=len(request.query) + _PAIR_OVERHEAD_BYTES,
            limits=Limits(info.max_batch_size, MAX_REQUEST_BYTES, info.length_ladder if for_padding else ()),
        )
        version, answers = await self._ask_all(request, groups, call, self._concurrency(info))
        if info.version not in ("", version):
            info = await self._read_info(call, int(version or 0))
        parts = [(group, _decode(answer, len(group))) for group, answer in zip(groups, answers, strict=True)]
        # one sub-request is in the caller's order
        scores = parts[0][1] if len(parts) == 1 else wire.merge(parts, len(request.documents))
        return Scored(
            model=self.model,
            served_by=self.name,
            logits=scores.logits,
            scores=activate(scores.logits, info.activation),
            truncated=scores.truncated,
            token_count=sum(scores.token_count.tolist()),
            token_counts=scores.token_count,
            model_version=version,
            requests=len(groups),
        )

    def _concurrency(self, info: ModelInfo) -> int:
        # In front of a bounded queue, Triton 2.51 does not prefetch, and misses the moment when a model instance
        # becomes free: requests that wait in the queue may be noticed half a second late (docs/LOG.md).
        return self.options.concurrency or (self.target.count(",") + 1 if info.queue_bounded else _CONCURRENCY)

    async def _ask_all(
        self, request: PairRequest, groups: Sequence[Sequence[int]], call: Call, concurrency: int
    ) -> tuple[str, list[Any]]:
        """Answers of one version: while servers are being updated, parts of a request may meet different ones.

        Parts that another version answered than most are asked again. If the version of most does not come any more,
        it was replaced meanwhile, and the one that comes is wanted of all.
        """
        transport = await self._connections.transport(call)
        answers: list[Any] = [None] * len(groups)
        asked: Sequence[int] = range(len(groups))
        wanted, missed = "", 0
        for _ in range(1 + _VERSION_ROUNDS):
            parts = [self._infer_request(request, groups[place], call) for place in asked]
            for place, answer in zip(asked, await transport.infer_all(parts, concurrency), strict=True):
                answers[place] = answer
            versions = [answer.model_version for answer in answers]
            if len(set(versions)) == 1:
                return versions[0], answers
            came = Counter(versions[place] for place in asked)
            missed = 0 if wanted in came else missed + 1
            if not wanted or missed == _VERSION_PATIENCE:
                wanted, missed = max(came, key=lambda version: (came[version], len(version), version)), 0
            asked = [place for place, version in enumerate(versions) if version != wanted]
        raise InvalidResponseError(
            f"{self.model!r} at {self.target}: versions {', '.join(sorted(set(versions)))} answered parts of "
            "one request, and their logits do not compare; activate the same version on every server"
        )

    def _infer_request(self, request: PairRequest, group: Sequence[int], call: Call) -> InferRequest:
        documents = [request.documents[index] for index in group]
        shape = (len(documents), 1)
        message = service_pb2.ModelInferRequest(
            model_name=self.model,
            id=os.urandom(16).hex(),
            inputs=[_Input(name=name, datatype="BYTES", shape=shape) for name in wire.INPUTS],
            outputs=_OUTPUTS,
            raw_input_contents=wire.encode_pairs(request.query, documents),
        )
        for name in (MAX_LENGTH, MAX_QUERY_TOKENS, MAX_DOCUMENT_TOKENS):
            most = getattr(request, name)
            if most is not None:
                message.parameters[name].int64_param = most
        if request.instruction is not None:
            message.parameters[INSTRUCTION].string_param = request.instruction
        doing = f"{len(documents)} pairs were sent"
        return InferRequest(message, call.deadline, doing, self._metadata(call), COMPRESSION[self.options.compression])

    async def _read_info(self, call: Call, version: int = 0) -> ModelInfo:
        """Of this version, or of any: another may have another activation, and its first step another prompt."""
        ensemble = await self._config(self.model, call, version)
        info = parse_model_info(self.model, ensemble)
        own = self.model + TOKENIZER_SUFFIX
        steps = {step.model_name: step.model_version for step in ensemble.ensemble_scheduling.step} or {own: 0}
        first, number = next(iter(steps.items()))
        try:  # while a model is replaced, a server has its steps under names that are lent to them
            step = await self._config(first, call, number, elsewhere=True)
        except (ConfigurationError, ModelNotReadyError):
            if first == own:
                raise
            step = await self._config(own, call, number)  # they were given back just now
        self._info = with_step(info, step)
        return self._info

    async def _config(self, model: str, call: Call, version: int, *, elsewhere: bool = False) -> Any:
        """Of servers with different versions, that of one with this version; they are asked in turn.

        Args:
            model: ensemble or step.
            call: it is asked for.
            version: 0 means any. If none has it, what the last one said is given.
            elsewhere: go on where a server does not have the model.
        """
        for last in (*[False] * (_CONFIG_ROUNDS - 1), True):
            try:
                config = (await self._ask("ModelConfig", service_pb2.ModelConfigRequest(name=model), call)).config
            except (ConfigurationError, ModelNotReadyError):
                if last or not elsewhere:
                    raise
                continue
            versions = config.version_policy.specific.versions
            if version < 1 or not versions or version in versions:
                break
        return config

    async def _ask(self, method: str, message: Any, call: Call) -> Any:
        transport = await self._connections.transport(call)
        timeout_s = call.deadline.left_s(doing=f"Triton was asked ({method})")
        return await transport.ask(method, message, timeout_s=timeout_s, metadata=self._metadata(call))

    def _metadata(self, call: Call) -> Metadata:
        return tuple({**self.options.headers, **call.headers}.items())

    def _translate(self, exc: Any, request_id: str | None) -> RerankError:
        proxy = proxy_of(self.target)
        asked = self.target if proxy is None else f"{self.target} through {proxy}"
        return error_for(exc.code().name, str(exc.details()), target=asked, model=self.model, request_id=request_id)


def _decode(answer: Any, n_documents: int) -> wire.PairScores:
    tensors = zip(answer.outputs, answer.raw_output_contents, strict=False)  # if one is too many, an output is missing
    outputs = {told.name: (told.datatype, told.shape, content) for told, content in tensors}
    return wire.decode_scores(outputs, n_documents=n_documents)


def choose_scorer(
    target: str | None, model: str | None, scorer: Scorer | None, options: TritonOptions | None
) -> Scorer:
    """The scorer that a client's arguments mean.

    Raises:
        ConfigurationError: neither or both of model and scorer, a target or options beside a scorer, or a client as
            scorer.
    """
    if (model is None) == (scorer is None):
        raise ConfigurationError("give model= (and a target) for one model on Triton, or scorer= for anything else")
    if scorer is None:
        assert model is not None
        return TritonScorer(DEFAULT_GRPC_TARGET if target is None else target, model, options=options)
    if target is not None or options is not None:
        raise ConfigurationError("target and options belong to a TritonScorer: give them to the one in scorer=")
    if hasattr(scorer, "scorer") and hasattr(scorer, "rerank"):
        raise ConfigurationError(f"scorer= is a {type(scorer).__name__}, which has one: give its .scorer")
    return scorer
