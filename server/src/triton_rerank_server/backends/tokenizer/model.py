"""Triton backend ``tokenizer``: the ensemble's first step, one backend for every model.

query, document (BYTES, (n, 1)) -> input_ids, attention_mask[, token_type_ids], token_count, truncated. All requests
that wait are tokenised in one call, in a thread of its own (handover.py); a bad request gets its own error and its
neighbours their answers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - Triton does not put it there
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from meters import Meters
from tokenizer.handover import Handover
from tokenizer.pairs import LIMITS, PairLimits, PairTensors, PairTokenizer
from tokenizer.texts import TextTokens
from tokenizer.tokenizer_file import PairError

_log = logging.getLogger(__name__)
METERS = {
    "triton_rerank_pairs_total": "Pairs that were tokenised",
    "triton_rerank_tokens_total": "Tokens of these pairs, padding left out",
    "triton_rerank_truncated_pairs_total": "Pairs of which a part was cut off",
    "triton_rerank_truncated_queries_total": "Of these, pairs whose query was cut",
    "triton_rerank_truncated_documents_total": "Likewise, whose document was cut; both may be",
}
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - by which Triton takes what a backend answers
NO_ROOM = (
    "the tokens of this request take {size} bytes of shared memory, and "
    + SHARED_MEMORY
    + " has {free} left: give the server more of it (docker run --shm-size, a pod's emptyDir), or send fewer documents"
)


@dataclass(frozen=True)
class Request:
    """One request as it came, in memory of ours: Triton takes its own back when the execution ends."""

    texts: dict[str, npt.NDArray[np.object_]]  # n of bytes, by the tensor's name
    parameters: str
    outputs: tuple[str, ...]  # that the caller wants
    sender: Any
    until_s: float  # on the monotonic clock; who waits longer is refused

    @classmethod
    def of(cls, request: Any, timeout_us: int) -> Request:
        """Copy what Triton brought; `timeout_us` is the queue's own, 0 for none, and the caller may ask for less."""
        texts = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
            for name in ("query", "document")
        }
        wait_us = min((us for us in (request.timeout(), timeout_us) if us), default=math.inf)
        until_s = time.monotonic() + wait_us / 1e6
        outputs = tuple(request.requested_output_names())
        return cls(texts, request.parameters(), outputs, request.get_response_sender(), until_s)

    @property
    def rows(self) -> int:
        """Pairs."""
        return len(self.texts["document"])


@dataclass(frozen=True)
class Pairs:
    """One request, decoded; the texts with their prompt."""

    queries: list[str]
    documents: list[str]
    limits: PairLimits
    outputs: tuple[str, ...]


class TritonPythonModel:
    """Triton's interface to `pairs.PairTokenizer`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer file of this version and the parameters of config.pbtxt."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._tokenizer = PairTokenizer.of_parameters(
            Path(args["model_repository"]) / args["model_version"] / "tokenizer.json", parameters
        )
        policy = config.get("dynamic_batching", {}).get("default_queue_policy", {})
        self._timeout_us = int(policy.get("default_timeout_microseconds", 0))
        self._outputs = [output["name"] for output in config["output"]]
        self._totals = dict.fromkeys(METERS, 0)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._meters = Meters(pb_utils, labels, METERS, self._totals.copy)
        self._handover = Handover(self._work, most_rows=config["max_batch_size"])

    def finalize(self) -> None:
        """Answer what waits, and tell the last counts."""
        self._handover.close()
        self._meters.close()

    def execute(self, requests: list[Any]) -> None:
        """Take every request of one execution; each is answered through its response sender."""
        if taken := [found for request in requests if (found := self._take(request))]:
            self._handover.put(taken)

    def _take(self, request: Any) -> Request | None:
        try:
            return Request.of(request, self._timeout_us)
        except BaseException as exc:  # noqa: BLE001 - Triton dies where execute raises beside a request that has a sender
            _send(request.get_response_sender(), _failure(exc))
            return None

    def _work(self, requests: Sequence[Request]) -> None:
        try:
            responses = self._answer(requests)
        except BaseException:  # noqa: BLE001 - each request tells its own; a panic of Rust is no Exception
            responses = [self._alone(request) for request in requests]
        for request, response in zip(requests, responses, strict=True):
            _send(request.sender, response)

    def _alone(self, request: Request) -> Any:
        try:
            return self._answer([request])[0]
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the caller is not to blame
            return _failure(exc)

    def _answer(self, requests: Sequence[Request]) -> list[Any]:
        parsed = [self._read(request) for request in requests]
        tokens = self._tokenizer.tokenize(
            text for pairs in parsed if isinstance(pairs, Pairs) for text in (*pairs.queries, *pairs.documents)
        )
        return [self._respond(pairs, tokens) for pairs in parsed]

    def _read(self, request: Request) -> Any:
        """Its pairs, or the refusal that answers it."""
        if request.sender.is_cancelled():
            return _refusal("the caller cancelled the request", pb_utils.TritonError.INVALID_ARG)
        if time.monotonic() > request.until_s:
            return _refusal("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)
        try:
            parameters = json.loads(request.parameters or "{}")
            limits = self._tokenizer.limits(*(parameters.get(name) for name in LIMITS))
            queries = [self._tokenizer.prompted(query, limits) for query in self._texts(request, "query")]
            documents = [self._tokenizer.prompted_document(text) for text in self._texts(request, "document")]
            return Pairs(queries, documents, limits, request.outputs)
        except PairError as exc:
            return _refusal(str(exc), pb_utils.TritonError.INVALID_ARG)

    def _texts(self, request: Request, name: str) -> list[str]:
        return [self._tokenizer.reader.decode(value, name) for value in request.texts[name]]

    def _respond(self, pairs: Any, tokens: dict[str, TextTokens]) -> Any:
        """What was asked for only: Triton 2.51 drops the rest without Python's lock, and the process dies on 3.12."""
        if not isinstance(pairs, Pairs):
            return pairs
        tensors: PairTensors = self._tokenizer.assemble(
            [tokens[query] for query in pairs.queries], [tokens[document] for document in pairs.documents], pairs.limits
        )
        outputs = {name: getattr(tensors, name) for name in self._outputs if name in pairs.outputs}
        if (size := sum(array.nbytes for array in outputs.values())) > (free := _free_shared_memory()):
            return _refusal(NO_ROOM.format(size=size, free=free), pb_utils.TritonError.INTERNAL)
        cut = (tensors.truncated, tensors.query_cut, tensors.document_cut)
        counts = (len(tensors.truncated), tensors.token_count.sum(), *map(np.count_nonzero, cut))
        for name, count in zip(METERS, counts, strict=True):
            self._totals[name] += int(count)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def _refusal(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _failure(error: BaseException) -> Any:
    return _refusal(f"the tokenizer failed ({error!r})", pb_utils.TritonError.INTERNAL)


def _free_shared_memory() -> int:
    """Bytes. A sender that fails for want of them can be told nothing more, and its caller would wait for ever."""
    found = os.statvfs(SHARED_MEMORY)
    return found.f_bavail * found.f_frsize


def _send(sender: Any, response: Any) -> None:
    """Answer and end in one: a step after this one that refuses is not told to the caller where they are two."""
    try:
        sender.send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception:  # noqa: BLE001 - whatever the way to one caller raises, the others get their answers
        _log.exception("an answer could not be given")
