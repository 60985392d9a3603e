"""Raw tritonclient requests, as one would write them by hand: no planning, no checks, no ranking."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Semaphore
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from triton_rerank.contract import DOCUMENT, LOGITS, QUERY, TOKEN_COUNT
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.served import CALL_TIMEOUT_S

CONCURRENCY = 8  # TritonOptions' own


def pair_inputs(query: str, documents: Sequence[str]) -> list[triton.InferInput]:
    """Tensors of one request, ``(n, 1)`` each."""
    column = np.array(documents, dtype=np.object_).reshape(-1, 1)
    inputs = []
    for name, values in ((QUERY, np.full_like(column, query)), (DOCUMENT, column)):
        inputs.append(triton.InferInput(name, list(values.shape), "BYTES"))
        inputs[-1].set_data_from_numpy(values)
    return inputs


class Sender:
    """Sends the documents of a list in given groups, so many at a time; safe to share between threads.

    Args:
        target: of a running Triton.
        model: public model name.
    """

    def __init__(self, target: str, model: str) -> None:
        self._client = triton.InferenceServerClient(target)
        self._model = model

    def send(self, query: str, documents: Sequence[str], groups: Sequence[Sequence[int]]) -> list[int]:
        """Score all groups.

        Args:
            query: the text.
            documents: n texts.
            groups: indexes of the documents of each request.

        Returns:
            Tokens of each of the n pairs, in the order of the documents.

        Raises:
            BenchError: a request failed.
        """
        free, answers = Semaphore(CONCURRENCY), SimpleQueue[tuple[Sequence[int], Any, Any]]()

        def done(group: Sequence[int], result: Any, error: Any) -> None:
            free.release()
            answers.put((group, result, error))

        for group in groups:
            free.acquire()
            self._client.async_infer(
                model_name=self._model,
                inputs=pair_inputs(query, [documents[index] for index in group]),
                callback=functools.partial(done, group),
                outputs=[triton.InferRequestedOutput(name) for name in (LOGITS, TOKEN_COUNT)],
                client_timeout=CALL_TIMEOUT_S,
            )
        token_counts = [0] * len(documents)
        for _ in groups:
            group, result, error = answers.get()
            if error is not None:
                raise BenchError(f"{self._model} did not answer {len(group)} pairs: {error}")
            for index, count in zip(group, result.as_numpy(TOKEN_COUNT)[:, 0].tolist(), strict=True):
                token_counts[index] = count
        return token_counts

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
