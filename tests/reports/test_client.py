"""What callers hand to a reranker and get back: lists, places, scores, numbers, event loops, processes."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from triton_rerank import (
    InvalidRequestError,
    InvalidResponseError,
    RerankClient,
    RerankResult,
    ServerUnavailableError,
)
from triton_rerank.testing import FakeScorer
from triton_rerank_server import TritonServer

QUERY = "how do I make a file smaller?"
SCORES = {"irrelevant": -3.0, "best": 4.0, "fair": 1.0, "good": 2.0}


def ranked(documents: Any, scores: Callable[[str, str], float] | dict[str, float] = SCORES, **call: Any) -> Any:
    with RerankClient(scorer=FakeScorer(scores)) as client:
        return client.rerank(QUERY, documents, **call)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


# --- places and scores -----------------------------------------------------------------------------------------------


def test_duplicates_keep_their_own_places() -> None:
    """langgenius/dify#1661: duplicates were dropped, and every index after them pointed at a neighbour."""
    documents = [
        {"id": 1, "text": "fair"},
        {"id": 2, "text": "best"},
        {"id": 3, "text": "fair"},
        {"id": 4, "text": "good"},
        {"id": 5, "text": "best"},
    ]
    result = ranked(documents)
    assert [(one.index, one.document["id"]) for one in result] == [(1, 2), (4, 5), (3, 4), (0, 1), (2, 3)]
    assert all(one.document is documents[one.index] for one in result)


def test_each_score_stands_beside_its_own_document() -> None:
    """redis/redis-vl-python#693, AnswerDotAI/rerankers#39, run-llama/llama_index#20597: scores of one order beside
    documents of another."""
    result = ranked(list(SCORES))
    assert [one.document for one in result] == ["best", "good", "fair", "irrelevant"]
    assert [one.score for one in result] == sorted(SCORES.values(), reverse=True)
    assert all(SCORES[one.document] == one.score and list(SCORES)[one.index] == one.document for one in result)


def test_a_top_k_above_the_number_of_documents_gives_all() -> None:
    """infiniflow/ragflow#11740, elastic/elasticsearch#111202: top_n larger than the list was an error."""
    assert [len(ranked(["best", "fair"], top_k=top_k)) for top_k in (1, 2, 3, 5, 10_000)] == [1, 2, 2, 2, 2]
    assert len(ranked([], top_k=5)) == 0


def test_top_k_is_obeyed_and_zero_is_refused() -> None:
    """mudler/LocalAI#6700, michaelfeil/infinity#404: top_n was ignored, or 0 and less meant all."""
    assert [one.document for one in ranked(list(SCORES), top_k=1)] == ["best"]
    for top_k in (0, -1):
        with pytest.raises(InvalidRequestError, match="top_k"):
            ranked(list(SCORES), top_k=top_k)


def test_equal_scores_keep_the_order_of_the_first_stage() -> None:
    """stargate/data-api#1974: documents of one score came in another order at each call."""
    orders = {tuple(one.index for one in ranked([f"d{n}" for n in range(50)], lambda *_: 0.5)) for _ in range(5)}
    assert orders == {tuple(range(50))}


def test_scores_that_saturate_do_not_tie_the_order() -> None:
    """ggozad/haiku.rag#529: a sigmoid gave the best documents 1.0 each, and they stayed in the order that they had."""
    logits = {"a": 50.0, "b": 60.0, "c": 55.0, "d": -60.0, "e": -50.0}
    with RerankClient(scorer=FakeScorer(logits, activation="sigmoid")) as client:
        result = client.rerank(QUERY, list(logits))
    assert [one.document for one in result] == ["b", "c", "a", "e", "d"]
    assert result[0].score == result[2].score == 1.0


@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_an_error_not_an_order(logit: float) -> None:
    """huggingface/text-embeddings-inference#138, beir-cellar/beir#126: NaN among the scores: a panic, or any order."""
    with pytest.raises(InvalidResponseError, match="finite"):
        ranked(["best", "x"], {"best": 1.0, "x": logit})


def test_one_document_gives_a_list_of_one() -> None:
    """FlagOpen/FlagEmbedding#922: one pair gave a bare number, and code that indexed it failed."""
    with RerankClient(scorer=FakeScorer(SCORES)) as client:
        assert client.score(QUERY, ["best"]) == [4.0]
        assert [one.index for one in client.rerank(QUERY, ["best"])] == [0]


def test_results_become_json() -> None:
    """deepset-ai/haystack#9664, run-llama/llama_index#16743, thinkany-ai/rag-search#10: numpy numbers in the result."""
    result: RerankResult[str] = ranked(list(SCORES))
    read = json.loads(json.dumps(asdict(result), allow_nan=False))
    assert [document["score"] for document in read["documents"]] == [4.0, 2.0, 1.0, -3.0]
    assert all(type(one.score) is float and type(one.index) is int for one in result)


def test_numbers_of_numpy_are_numbers() -> None:
    """own: top_k, min_score and timeout_s that numpy computed were refused, and the message showed the same number."""
    result = ranked(list(SCORES), top_k=np.int64(3), min_score=np.float32(1.5), timeout_s=np.float64(5))
    assert [one.document for one in result] == ["best", "good"]


@pytest.mark.parametrize("make", [np.array, lambda texts: np.array(texts, dtype=object), iter, dict.fromkeys])
def test_documents_may_come_as_an_array(make: Callable[[list[str]], Any]) -> None:
    """pandas-dev/pandas#14137, huggingface/sentence-transformers#3124: the truth value of an array is ambiguous."""
    documents = make(list(SCORES))
    result = ranked(documents.keys() if isinstance(documents, dict) else documents)
    assert [one.index for one in result] == [1, 3, 2, 0]


def test_a_string_is_no_list_of_documents() -> None:
    """open-webui/open-webui#16228: documents of another form than the server wants ended in an internal error."""
    for documents in ("best", b"best", {"text": "best"}, [b"best"], [["best", "fair"]], [None], [float("nan")], 7):
        with pytest.raises(InvalidRequestError, match="documents"):
            ranked(documents)


def test_empty_documents_are_scored_like_any_other(tiny_server: TritonServer) -> None:
    """volcengine/OpenViking#1737: one empty document, and the whole list came back as it was."""
    with RerankClient(tiny_server.grpc_target, model="tiny-bert", timeout_s=30) as client:
        result = client.rerank(QUERY, ["", "gzip shrinks files", " ", "\n"])
        assert client.score(QUERY, ["gzip shrinks files"])[0] in [pytest.approx(one.score) for one in result]
    assert sorted(one.index for one in result) == [0, 1, 2, 3] and not result.degraded


def test_a_list_beyond_a_servers_batch_is_split_and_merged(tiny_server: TritonServer) -> None:
    """vercel/ai#17811, Tencent/WeKnora#3458, caura-ai/caura#704: more documents than a server takes at once were
    refused, and the unranked list was used without a word."""
    documents = [f"{number} gzip shrinks files" for number in range(1316)]
    with RerankClient(tiny_server.grpc_target, model="tiny-bert", timeout_s=120) as client:
        result = client.rerank(QUERY, documents)
        alone = client.score(QUERY, [documents[1315], documents[0]])
    assert sorted(one.index for one in result) == list(range(1316)) and not result.degraded
    scores = {one.index: one.score for one in result}
    assert [scores[1315], scores[0]] == pytest.approx(alone, abs=1e-5)


def test_a_document_over_the_models_length_is_cut_and_said_so(tiny_server: TritonServer) -> None:
    """joryirving/home-ops#9770, huggingface/text-embeddings-inference#356, stargate/data-api#2532: one long document
    failed the whole request."""
    with RerankClient(tiny_server.grpc_target, model="tiny-bert", timeout_s=60) as client:
        result = client.rerank(QUERY, ["short", "gzip shrinks files " * 5000])
    assert {one.index: one.truncated for one in result} == {0: False, 1: True}


# --- loops, threads, processes ---------------------------------------------------------------------------------------


def test_the_sync_client_works_inside_a_running_loop(tiny_server: TritonServer) -> None:
    """rtzr/tritony#8, run-llama/llama_index#9978, deepset-ai/haystack#8951: "asyncio.run() cannot be called" in a
    notebook."""

    async def cell() -> int:
        with RerankClient(tiny_server.grpc_target, model="tiny-bert", timeout_s=30) as client:
            return len(client.rerank(QUERY, ["a", "b"]))

    assert asyncio.run(cell()) == 2


def test_a_client_that_nobody_closes_holds_up_no_exit(tiny_server: TritonServer) -> None:
    """grpc/grpc#5084, grpc/grpc#4969: Python did not end where a channel was left open."""
    code = f"""
import sys
from triton_rerank import RerankClient
client = RerankClient({tiny_server.grpc_target!r}, model="tiny-bert", timeout_s=30)
print(len(client.rerank("q", ["a", "b"])))
"""
    process = run_python(code)
    assert (process.returncode, process.stdout, process.stderr) == (0, "2\n", "")


def test_starting_a_process_beside_a_client_writes_nothing(tiny_server: TritonServer) -> None:
    """grpc/grpc#37178, grpc/grpc#37642, ray-project/ray#24917: lines about fork() handlers in everybody's output."""
    code = f"""
import subprocess, sys, threading
from triton_rerank import RerankClient
with RerankClient({tiny_server.grpc_target!r}, model="tiny-bert", timeout_s=30) as client:
    asking = threading.Thread(target=lambda: [client.rerank("q", ["a", "b"]) for _ in range(30)])
    asking.start()
    for _ in range(5):
        subprocess.run([sys.executable, "-S", "-c", "0"], close_fds=True, check=True)
    asking.join()
"""
    process = run_python(code)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_protobuf_in_pure_python_will_do(tiny_server: TritonServer) -> None:
    """triton-inference-server/server#4988, triton-inference-server/client#869: messages of Triton's client failed to
    load beside another protobuf; the advice was its pure Python form."""
    code = f"""
from google.protobuf.internal import api_implementation
from triton_rerank import RerankClient
with RerankClient({tiny_server.grpc_target!r}, model="tiny-bert", timeout_s=30) as client:
    print(api_implementation.Type(), len(client.rerank("q", ["a", "b"])))
"""
    process = run_python(code, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
    assert process.stdout == "python 2\n", process.stderr


def test_gevent_and_threads_do_not_hang_a_call(tiny_server: TritonServer) -> None:
    """grpc/grpc#4629: a call under gevent's patches hung until gRPC was told of gevent."""
    code = f"""
from gevent import monkey
monkey.patch_all()
import grpc.experimental.gevent
grpc.experimental.gevent.init_gevent()
import gevent
from triton_rerank import RerankClient
with RerankClient({tiny_server.grpc_target!r}, model="tiny-bert", timeout_s=30) as client:
    jobs = [gevent.spawn(client.rerank, "q", ["a", "b"]) for _ in range(8)]
    gevent.joinall(jobs, timeout=60, raise_error=True)
    print(sum(len(job.value) for job in jobs))
"""
    process = run_python(code)
    assert (process.returncode, process.stdout) == (0, "16\n"), process.stderr


def test_a_port_of_another_protocol_is_said_to_be_none(tiny_server: TritonServer) -> None:
    """isarsoft/yolov4-triton-tensorrt#15: asking the HTTP port told of addresses, where users looked for the fault."""
    with (
        RerankClient(f"127.0.0.1:{tiny_server.http_port}", model="tiny-bert", timeout_s=5) as client,
        pytest.raises(ServerUnavailableError, match="that this is its gRPC port"),
    ):
        client.rerank(QUERY, ["a"])
