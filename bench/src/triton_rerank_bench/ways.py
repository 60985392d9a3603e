"""One query with its documents, scored in four ways: raw tritonclient and the client, blocking and awaited."""

from __future__ import annotations

from typing import Any, Literal

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from triton_rerank import AsyncRerankClient, RerankClient, RerankResult
from triton_rerank.contract import LOGITS, TOKEN_COUNT, TRUNCATED
from triton_rerank_bench.raw import pair_inputs
from triton_rerank_bench.served import CALL_TIMEOUT_S
from triton_rerank_bench.workloads import Workload

Way = Literal["raw", "client", "raw aio", "client aio"]
WAYS: tuple[Way, ...] = ("raw", "client", "raw aio", "client aio")
PAIRED: tuple[tuple[Way, Way], ...] = (("raw", "client"), ("raw aio", "client aio"))
_OUTPUTS = (LOGITS, TOKEN_COUNT, TRUNCATED)


class Ways:
    """The same call in four ways, each over a connection of its own to one server.

    Args:
        target: of the server.
        model: public model name.
    """

    def __init__(self, target: str, model: str) -> None:
        self._model = model
        self._raw = triton.InferenceServerClient(target)
        self._raw_aio = triton_aio.InferenceServerClient(target)
        self._client = RerankClient(target, model=model, timeout_s=CALL_TIMEOUT_S)
        self._client_aio = AsyncRerankClient(target, model=model, timeout_s=CALL_TIMEOUT_S)

    async def call(self, way: Way, workload: Workload) -> int:
        """Make the call; returns how many requests it was."""
        if way == "raw":
            return _decode(self._raw.infer(**_arguments(self._model, workload)))
        if way == "raw aio":
            return _decode(await self._raw_aio.infer(**_arguments(self._model, workload)))
        result: RerankResult[str]
        if way == "client":
            result = self._client.rerank(workload.query, workload.documents)
        else:
            result = await self._client_aio.rerank(workload.query, workload.documents)
        return result.timings.requests

    async def aclose(self) -> None:
        """Close all four connections."""
        self._raw.close()
        self._client.close()
        await self._raw_aio.close()
        await self._client_aio.aclose()


def _arguments(model: str, workload: Workload) -> dict[str, Any]:
    """Of tritonclient's ``infer``."""
    return {
        "model_name": model,
        "inputs": pair_inputs(workload.query, workload.documents),
        "outputs": [triton.InferRequestedOutput(name) for name in _OUTPUTS],
    }


def _decode(answer: triton.InferResult) -> int:
    for name in _OUTPUTS:
        answer.as_numpy(name)
    return 1
