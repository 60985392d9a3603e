"""How much padding the encoder is given: the client's requests for each list, tokenised by the server itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton

from triton_rerank import ModelInfo, TritonOptions
from triton_rerank.contract import ATTENTION_MASK, DOCUMENT, MAX_REQUEST_BYTES, QUERY, TOKENIZER_SUFFIX
from triton_rerank.triton.plan import Limits, plan
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.workloads import Workload

PAIR_OVERHEAD_BYTES = 8  # as the client's scorer counts: a length before each of the two texts
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Tensors:
    """What the encoder gets for one list: requests, and places in their tensors, padding included."""

    requests: int
    padded_tokens: int


def encoder_tensors(target: str, info: ModelInfo, lists: Sequence[Workload], options: TritonOptions) -> list[Tensors]:
    """Ask a running server's tokenizer step for the tensors of each list, sent with these options of the client.

    Raises:
        BenchError: the step does not answer.
    """
    for_padding = options.split == "padding" or (options.split == "auto" and not info.queue_bounded)
    limits = Limits(info.max_batch_size, MAX_REQUEST_BYTES, info.length_ladder if for_padding else ())
    with closing(triton.InferenceServerClient(target)) as client:
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
    padded = 0
    for group in groups:
        inputs = pair_inputs(workload.query, [workload.documents[index] for index in group])
        outputs = [triton.InferRequestedOutput(ATTENTION_MASK)]
        try:
            answer = client.infer(step, inputs, outputs=outputs, client_timeout=_TIMEOUT_S)
        except triton.InferenceServerException as exc:
            raise BenchError(f"{step} did not tokenise {len(group)} pairs: {exc}") from exc
        padded += answer.as_numpy(ATTENTION_MASK).size  # (n, padded length)
    return Tensors(len(groups), padded)
