"""How much padding the encoder is given: the client's requests for each list, tokenised by the server itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import tritonclient.grpc as triton

from triton_rerank import ModelInfo, TritonOptions
from triton_rerank._plan import Limits, plan
from triton_rerank.contract import ATTENTION_MASK, MAX_REQUEST_BYTES, TOKENIZER_SUFFIX
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.raw import pair_inputs
from triton_rerank_bench.strategies import PAIR_OVERHEAD_BYTES, Groups
from triton_rerank_bench.workloads import Workload

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Tensors:
    """What the encoder gets for one list.

    Attributes:
        requests: that the client splits the list into.
        padded_tokens: places in their tensors.
        tokens: of these, real ones, special tokens included.
    """

    requests: int
    padded_tokens: int
    tokens: int


def encoder_tensors(target: str, info: ModelInfo, lists: Sequence[Workload], options: TritonOptions) -> list[Tensors]:
    """Ask the server's tokenizer step for the tensors of each list; the encoder computes nothing.

    Args:
        target: of a running Triton.
        info: of the model.
        lists: to be sent.
        options: of the client that sends them.

    Raises:
        BenchError: the step does not answer.
    """
    ladder = info.length_ladder if _splits_for_padding(info, options) else ()
    limits = Limits(info.max_batch_size, MAX_REQUEST_BYTES, ladder)
    with closing(triton.InferenceServerClient(target)) as client:
        return [_of_list(client, info.name + TOKENIZER_SUFFIX, workload, _plan(workload, limits)) for workload in lists]


def _splits_for_padding(info: ModelInfo, options: TritonOptions) -> bool:
    return options.split == "padding" or (options.split == "auto" and not info.queue_bounded)


def _plan(workload: Workload, limits: Limits) -> Groups:
    lengths = [len(document.encode()) for document in workload.documents]
    return plan(lengths, overhead=len(workload.query.encode()) + PAIR_OVERHEAD_BYTES, limits=limits)


def _of_list(client: triton.InferenceServerClient, step: str, workload: Workload, groups: Groups) -> Tensors:
    padded = tokens = 0
    for group in groups:
        try:
            answer = client.infer(
                step,
                pair_inputs(workload.query, [workload.documents[index] for index in group]),
                outputs=[triton.InferRequestedOutput(ATTENTION_MASK)],
                client_timeout=_TIMEOUT_S,
            )
        except triton.InferenceServerException as exc:
            raise BenchError(f"{step} did not tokenise {len(group)} pairs: {exc}") from exc
        mask = answer.as_numpy(ATTENTION_MASK)  # (n, padded length)
        padded += mask.size
        tokens += int(mask.sum())
    return Tensors(len(groups), padded, tokens)
