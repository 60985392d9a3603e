"""The scorer in process against the same model behind a real Triton."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from support.load import BusyClock
from support.raw import infer_raw

from triton_rerank import DeadlineExceededError, InvalidRequestError
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, PairRequest, Scored
from triton_rerank.local.scorer import LocalScorer
from triton_rerank_server import TritonServer

OUTPUTS = ("logits", "token_count", "truncated")
DEMO = "minilm-l6-demo"
SYNC, ASYNC = SyncRuntime(), AsyncRuntime()


def local(scorer: LocalScorer, request: PairRequest, timeout_s: float = 60.0, *, is_async: bool = False) -> Scored:
    job = scorer.score(request, Call(Deadline(timeout_s), ASYNC if is_async else SYNC))
    return asyncio.run(job) if is_async else run_sync(job)


def served(server: TritonServer, model: str, request: PairRequest) -> dict[str, Any]:
    parameters = {} if request.max_length is None else {"max_length": request.max_length}
    inputs = {"query": [request.query] * len(request.documents), "document": list(request.documents)}
    return infer_raw(server.grpc_target, model, inputs, OUTPUTS, parameters)


def mixed(passages: list[str]) -> tuple[bytes, ...]:
    """Documents of all lengths, an empty one, and one that is cut."""
    texts = ["", *passages[:30], " ".join(passages[:40]), "a\0b", "naïve 東京 🚀"]
    return tuple(text.encode() for text in texts)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("max_length", [None, 128, 33, 6])
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-xlmr"])
def test_logits_tokens_and_cuts_equal_the_served_model(
    server: TritonServer,
    model_repository: Path,
    passages: list[str],
    model: str,
    max_length: int | None,
    is_async: bool,
) -> None:
    request = PairRequest(b"how do I shrink a file before I mail it", mixed(passages), max_length)
    there = served(server, model, request)
    here = local(LocalScorer(model_repository, model), request, is_async=is_async)
    assert here.logits is not None
    np.testing.assert_allclose(here.logits, there["logits"][:, 0], atol=1e-4)
    np.testing.assert_array_equal(
        np.argsort(-here.logits, kind="stable"), np.argsort(-there["logits"][:, 0], kind="stable")
    )
    np.testing.assert_array_equal(here.truncated, there["truncated"][:, 0])
    assert here.token_count == int(there["token_count"].sum())
    assert here.token_counts is not None and here.token_counts.tolist() == there["token_count"][:, 0].tolist()


@pytest.mark.parametrize("max_length", [4, 129])
@pytest.mark.parametrize("model", ["tiny-bert", "tiny-xlmr"])
def test_a_max_length_is_refused_in_the_same_words(
    server: TritonServer, model_repository: Path, model: str, max_length: int
) -> None:
    request = PairRequest(b"q", (b"d",), max_length)
    with pytest.raises(InvalidRequestError) as here:
        local(LocalScorer(model_repository, model), request)
    with pytest.raises(triton.InferenceServerException) as there:
        served(server, model, request)
    assert str(here.value) in str(there.value)


def test_the_int8_model_gives_the_served_logits_of_real_passages(
    server: TritonServer, model_repository: Path, passages: list[str]
) -> None:
    request = PairRequest(b"how do I compress a folder", tuple(passage.encode() for passage in passages[:40]))
    there = served(server, DEMO, request)["logits"][:, 0]
    here = local(LocalScorer(model_repository, DEMO), request).logits
    assert here is not None
    np.testing.assert_allclose(here, there, atol=1e-4)  # one request, hence the same micro-batches and int8 scales


def test_a_text_of_3_mb_takes_no_longer_than_what_is_read_of_it(model_repository: Path) -> None:
    """Tokenised whole it would take seconds of processor time."""
    scorer = LocalScorer(model_repository, DEMO)
    scorer.load()
    before = time.process_time()
    scored = local(scorer, PairRequest(b"q", (b"words of a long document " * 120_000,)))
    assert time.process_time() - before < 1.0
    assert scored.logits is not None and len(scored.logits) == 1
    scorer.close()


@pytest.mark.alone
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_deadline_is_kept_on_what_takes_long(model_repository: Path, is_async: bool, busy: BusyClock) -> None:
    documents = tuple(b"%d " % n + b"words of a long document " * 200 for n in range(400))
    scorer = LocalScorer(model_repository, DEMO)
    scorer.load()
    took_s: list[float] = []  # by the clock, and without what the machine kept threads waiting

    async def main() -> None:
        start = time.monotonic()
        try:
            await scorer.score(PairRequest(b"q", documents), Call(Deadline(0.2), ASYNC if is_async else SYNC))
        finally:
            took_s.extend((time.monotonic() - start, busy.own_s(start)))

    with pytest.raises(DeadlineExceededError, match=r"timeout_s of 0\.2 s passed before local had scored"):
        asyncio.run(main()) if is_async else run_sync(main())
    scorer.close()
    assert took_s[0] >= 0.2 and took_s[1] < 0.3
