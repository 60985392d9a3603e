"""What Triton itself counted of a model. Its counters follow an answer by a moment, so they are waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass

import tritonclient.grpc as triton

from triton_rerank_bench.errors import BenchError

_WAIT_S = 5.0
_POLL_S = 0.0005
_STILL_S = 0.1


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
        return Counts(
            self.requests - before.requests,
            self.inferences - before.inferences,
            self.executions - before.executions,
            self.seconds - before.seconds,
            self.queue_seconds - before.queue_seconds,
            self.compute_seconds - before.compute_seconds,
        )


class TritonStatistics:
    """Reads the counters of one model.

    Args:
        target: of a running Triton.
        model: the ensemble, or one of its steps.
    """

    def __init__(self, target: str, model: str) -> None:
        self._client = triton.InferenceServerClient(target)
        self._model = model

    def read(self) -> Counts:
        """The counters now, all versions together.

        Raises:
            BenchError: Triton does not answer.
        """
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

    def settled(self) -> Counts:
        """The counters, once they have stood still for a moment: all that was answered before is in them.

        Raises:
            BenchError: Triton does not answer.
        """
        counts = self.read()
        while True:
            time.sleep(_STILL_S)
            if (now := self.read()) == counts:
                return counts
            counts = now

    def after(self, before: Counts, n_requests: int) -> Counts:
        """What was counted since ``before``, once ``n_requests`` more were.

        Raises:
            BenchError: they are not counted within seconds, or more are: somebody else asks this server.
        """
        give_up = time.monotonic() + _WAIT_S
        while (now := self.read().since(before)).requests < n_requests and time.monotonic() < give_up:
            time.sleep(_POLL_S)
        if now.requests != n_requests:
            raise BenchError(f"Triton counted {now.requests} requests to {self._model} where {n_requests} were sent")
        return now

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
