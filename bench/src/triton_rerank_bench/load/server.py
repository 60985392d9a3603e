"""What a running Triton says of a model: what it counted, and how much padding its encoder is given for each list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from triton_rerank import ModelInfo, TritonOptions
from triton_rerank.contract import ATTENTION_MASK, DOCUMENT, MAX_REQUEST_BYTES, QUERY, SCHEDULING, TOKENIZER_SUFFIX
from triton_rerank.triton.plan import Limits, plan
from triton_rerank.triton.proxies import own_arguments
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.workloads import Workload

PAIR_OVERHEAD_BYTES = 8  # as the client's scorer counts: a length before each of the two texts
_WAIT_S = 5.0
_TIMEOUT_S = 60.0

# Sums since the server started, or differences of two such sums. "requests" were answered, "inferences" are rows of
# all, "executions" are batches that the model computed; "seconds" are requests' time in the server, from the first byte
# read to the answer given, of which "queue_seconds" in the queue and "compute_seconds" in that of the whole batch.
Counts = dict[str, float]
Tensors = tuple[int, int]  # that the encoder gets for one list: requests, and places in them, padding included


class TritonStatistics:
    """Reads the counters of one model, the ensemble or one of its steps, of a running Triton."""

    def __init__(self, target: str, model: str) -> None:
        self._client = triton.InferenceServerClient(target, channel_args=own_arguments(target))
        self._model = model

    def read(self, before: Mapping[str, float] | None = None) -> Counts:
        """The counters now, all versions together, or what was counted since; they follow an answer by a moment.

        Raises:
            BenchError: Triton does not answer.
        """
        versions = self._ask(self._client.get_inference_statistics).model_stats
        stats = [version.inference_stats for version in versions]
        now = {
            "requests": sum(int(each.success.count) for each in stats),
            "inferences": sum(int(version.inference_count) for version in versions),
            "executions": sum(int(version.execution_count) for version in versions),
            "seconds": sum(int(each.success.ns) for each in stats) / 1e9,
            "queue_seconds": sum(int(each.queue.ns) for each in stats) / 1e9,
            "compute_seconds": sum(int(each.compute_infer.ns) for each in stats) / 1e9,
        }
        return {name: value - (before[name] if before else 0) for name, value in now.items()}

    def hides_computation(self) -> bool:
        """Answers come apart from Triton's executions, which tell nothing of them. Raises BenchError."""
        return SCHEDULING in self._ask(self._client.get_model_config).config.parameters

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, call: Callable[..., Any]) -> Any:
        try:
            return call(self._model, client_timeout=_WAIT_S)
        except triton.InferenceServerException as exc:
            raise BenchError(f"Triton does not tell its statistics and config of {self._model}: {exc}") from exc


def encoder_tensors(target: str, info: ModelInfo, lists: Sequence[Workload], options: TritonOptions) -> list[Tensors]:
    """Ask a server's tokenizer step for the tensors of lists, sent with options; raises BenchError if it fails."""
    for_padding = options.split == "padding" or (options.split == "auto" and not info.queue_bounded)
    limits = Limits(info.max_batch_size, MAX_REQUEST_BYTES, info.length_ladder if for_padding else ())
    with closing(triton.InferenceServerClient(target, channel_args=own_arguments(target))) as client:
        return [_of_list(client, info.name + TOKENIZER_SUFFIX, workload, limits) for workload in lists]


def pair_inputs(query: str, documents: Sequence[str]) -> list[triton.InferInput]:
    """Tensors of one raw request, ``(n, 1)`` each."""
    column = np.array(documents, dtype=np.object_).reshape(-1, 1)
    inputs = []
    for name, values in ((QUERY, np.full_like(column, query)), (DOCUMENT, column)):
        inputs.append(triton.InferInput(name, list(values.shape), "BYTES"))
        inputs[-1].set_data_from_numpy(values)
    return inputs


def _of_list(client: triton.InferenceServerClient, step: str, workload: Workload, limits: Limits) -> Tensors:
    lengths = [len(document.encode()) for document in workload.documents]
    groups = plan(lengths, overhead=len(workload.query.encode()) + PAIR_OVERHEAD_BYTES, limits=limits)
    padded, outputs = 0, [triton.InferRequestedOutput(ATTENTION_MASK)]
    for group in groups:
        inputs = pair_inputs(workload.query, [workload.documents[index] for index in group])
        try:
            answer = client.infer(step, inputs, outputs=outputs, client_timeout=_TIMEOUT_S)
        except triton.InferenceServerException as exc:
            raise BenchError(f"{step} did not tokenise {len(group)} pairs: {exc}") from exc
        padded += answer.as_numpy(ATTENTION_MASK).size  # (n, padded length)
    return len(groups), padded
