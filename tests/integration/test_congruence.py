"""What is served equals PyTorch on the same pairs, however the pairs travel."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from support.raw import infer_raw

from triton_rerank import RerankClient
from triton_rerank_export.gate.parity import ParityQuery, load_parity_set
from triton_rerank_export.gate.reference import Reference
from triton_rerank_server import TritonServer

FAMILIES = ("tiny-bert", "tiny-xlmr")
ATOL = 1e-4


class Oracle:
    """PyTorch logits, each pair computed once."""

    def __init__(self, folder: Path) -> None:
        self._reference = Reference(folder, max_length=128)
        self._cache: dict[tuple[str, str], float] = {}

    def logits(self, query: str, documents: list[str]) -> npt.NDArray[Any]:
        for document in documents:
            if (query, document) not in self._cache:
                self._cache[query, document] = float(self._reference.logits(query, [document])[0])
        return np.array([self._cache[query, document] for document in documents])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def oracle(family: str, checkpoints: dict[str, Path]) -> Oracle:
    return Oracle(checkpoints[family])


@pytest.fixture
def client(family: str, server: TritonServer) -> Iterator[RerankClient]:
    with RerankClient(server.grpc_target, model=family, timeout_s=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def queries() -> list[ParityQuery]:
    return load_parity_set()


def by_index(client: RerankClient, query: str, documents: list[str]) -> npt.NDArray[Any]:
    result = client.rerank(query, documents)
    return np.array([ranked.logit for ranked in sorted(result, key=lambda ranked: ranked.index)])


def assert_close(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    difference = np.abs(got - expected)
    assert difference.max() <= ATOL, f"largest difference {difference.max():.2g}, mean {difference.mean():.2g}"


def test_served_logits_equal_pytorch_on_real_pairs(
    client: RerankClient, oracle: Oracle, queries: list[ParityQuery]
) -> None:
    for query in queries:
        documents = list(query.documents)
        assert_close(by_index(client, query.query, documents), oracle.logits(query.query, documents))


def test_the_random_models_tell_documents_apart(oracle: Oracle, queries: list[ParityQuery]) -> None:
    spread = [np.ptp(oracle.logits(query.query, list(query.documents))) for query in queries]
    assert min(spread) > 100 * ATOL, "a model that gives every document one logit would pass every test here"


def test_a_pair_scores_the_same_alone_and_among_neighbours(client: RerankClient, queries: list[ParityQuery]) -> None:
    query, documents = queries[0].query, list(queries[0].documents)
    together = by_index(client, query, documents)
    alone = np.array([by_index(client, query, [document])[0] for document in documents])
    assert_close(together, alone)


def test_a_list_split_into_many_requests_scores_as_one(
    client: RerankClient, oracle: Oracle, queries: list[ParityQuery]
) -> None:
    texts = [document for query in queries for document in query.documents]
    documents = [f"{n} {text}" for n in range(2) for text in texts]  # a text that comes twice is sent once
    assert len(set(documents)) > client.model_info().max_batch_size
    result = client.rerank("sorting in place", documents)
    assert result.timings.requests > 1
    assert_close(by_index(client, "sorting in place", documents), oracle.logits("sorting in place", documents))


def test_concurrent_callers_get_their_own_answers(
    client: RerankClient, oracle: Oracle, queries: list[ParityQuery]
) -> None:
    jobs = queries * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda query: by_index(client, query.query, list(query.documents)), jobs))
    for query, answer in zip(jobs, answers, strict=True):
        assert_close(answer, oracle.logits(query.query, list(query.documents)))


def test_segment_ids_change_the_logit_of_the_bert_type(server: TritonServer) -> None:
    ids = np.array([[5, 6, 7, 8, 9, 10]], dtype=np.int64)
    mask = np.ones_like(ids)
    logits = [
        infer_raw(
            server.grpc_target,
            "tiny-bert-encoder",
            {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.full_like(ids, segment)},
            ["logits"],
        )["logits"][0, 0]
        for segment in (0, 1)
    ]
    assert abs(logits[0] - logits[1]) > 0.01


def test_request_parameters_shorten_the_pair(server: TritonServer, family: str) -> None:
    pair = {"query": ["heap " * 20], "document": ["binary heap keeps its largest element " * 20]}
    outputs = ["logits", "token_count", "truncated"]
    full = infer_raw(server.grpc_target, family, pair, outputs)
    short = infer_raw(server.grpc_target, family, pair, outputs, {"max_length": 32, "max_query_tokens": 4})
    assert full["token_count"][0, 0] == 128
    assert short["token_count"][0, 0] == 32
    assert short["truncated"][0, 0]
    assert full["logits"][0, 0] != short["logits"][0, 0]


def test_the_order_equals_sentence_transformers(
    server: TritonServer, family: str, checkpoints: dict[str, Path], passages: list[str]
) -> None:
    peer = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = peer.CrossEncoder(str(checkpoints[family]), device="cpu", max_length=128)
    with RerankClient(server.grpc_target, model=family) as client:
        for query in ("how do I make a file smaller?", "what is running at the moment?"):
            theirs = model.rank(query, passages)
            ours = client.rerank(query, passages)
            assert [ranked.index for ranked in ours] == [entry["corpus_id"] for entry in theirs]
            np.testing.assert_allclose(
                [cast("float", ranked.score) for ranked in ours], [entry["score"] for entry in theirs], atol=ATOL
            )


def test_int8_keeps_the_best_document_of_the_fp32_model(
    demo_client: RerankClient,
    checkpoints: dict[str, Path],
    passages: list[str],
    example_queries: list[dict[str, object]],
) -> None:
    reference = Reference(checkpoints["minilm-l6-demo"], max_length=512)
    for example in example_queries:
        query = str(example["query"])
        assert demo_client.rerank(query, passages)[0].index == int(np.argmax(reference.logits(query, passages)))
