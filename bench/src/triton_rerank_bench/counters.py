"""What Triton itself counted of a model. Its counters follow an answer by a moment."""

from __future__ import annotations

from dataclasses import dataclass, fields

import tritonclient.grpc as triton

from triton_rerank.contract import SCHEDULING
from triton_rerank_bench.errors import BenchError

_WAIT_S = 5.0


@dataclass(frozen=True)
class Counts:
    """Sums since the server started, or differences of two such sums.

    Attributes:
        requests: answered.
        inferences: rows of all requests.
        executions: batches that the model computed.
        seconds: requests' time in the server, from the first byte read to the answer given.
        queue_seconds: of these, requests' time in the queue.
        compute_seconds: of these, requests' time in the model's computation; each has that of its whole batch.
    """

    requests: int
    inferences: int
    executions: int
    seconds: float
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    def since(self, before: Counts) -> Counts:
        """What was counted between two readings."""
        return Counts(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))


class TritonStatistics:
    """Reads the counters of one model, the ensemble or one of its steps, of a running Triton."""

    def __init__(self, target: str, model: str) -> None:
        self._client = triton.InferenceServerClient(target)
        self._model = model

    def read(self) -> Counts:
        """The counters now, all versions together; raises BenchError where Triton does not answer."""
        try:
            answer = self._client.get_inference_statistics(self._model, client_timeout=_WAIT_S)
        except triton.InferenceServerException as exc:
            raise BenchError(f"Triton does not tell its statistics of {self._model}: {exc}") from exc
        versions = answer.model_stats
        stats = [version.inference_stats for version in versions]
        return Counts(
            requests=sum(int(of_version.success.count) for of_version in stats),
            inferences=sum(int(version.inference_count) for version in versions),
            executions=sum(int(version.execution_count) for version in versions),
            seconds=sum(int(of_version.success.ns) for of_version in stats) / 1e9,
            queue_seconds=sum(int(of_version.queue.ns) for of_version in stats) / 1e9,
            compute_seconds=sum(int(of_version.compute_infer.ns) for of_version in stats) / 1e9,
        )

    def hides_computation(self) -> bool:
        """The model is answered apart from Triton's executions, so these say nothing of its queue and computation.

        Raises:
            BenchError: Triton does not answer.
        """
        try:
            config = self._client.get_model_config(self._model, client_timeout=_WAIT_S).config
        except triton.InferenceServerException as exc:
            raise BenchError(f"Triton does not tell the config of {self._model}: {exc}") from exc
        return SCHEDULING in config.parameters

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
