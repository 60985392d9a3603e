"""A model is unloaded, comes back, and is replaced while clients ask: every answer is one version's, wholly."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton
from support.load import Load
from support.tritons import EXPLICIT, NAME, only_bert, start, wait_until

from triton_rerank import (
    InvalidResponseError,
    ModelNotReadyError,
    RerankClient,
    RerankError,
    RerankResult,
    TritonOptions,
)
from triton_rerank_export.repository import store
from triton_rerank_export.repository.rollout import reload
from triton_rerank_server import TritonServer

Logits = npt.NDArray[np.float64]

QUERY = "how to zip a file"
DOCUMENTS = [f"{number}: gzip shrinks files{' and more' * (number % 3)}" for number in range(40)]
PAIRS_A_REQUEST = 8  # forty documents make five sub-requests
THREADS = 8


@dataclass
class Versions:
    """A server with explicit control, its repository, and the logits of each version.

    Both versions of tiny-bert are installed, 2 being 3 higher than 1; sub-requests are small.
    """

    repository: Path
    server: TritonServer

    @property
    def target(self) -> str:
        return self.server.grpc_target

    def serve(self, version: int) -> None:
        """As the command ``activate``."""
        activate(self.repository, version)
        reload(self.target, NAME)


@pytest.fixture(scope="module")
def pair(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Versions]]:
    folders = [only_bert(two_versions, tmp_path_factory.mktemp("reload") / "model_repository") for _ in range(2)]
    for folder in folders:
        activate(folder, 1)
    servers = [start(folder, *EXPLICIT) for folder in folders]
    with servers[0], servers[1]:
        yield [Versions(folder, server) for folder, server in zip(folders, servers, strict=True)]


@pytest.fixture
def one(pair: list[Versions]) -> Versions:
    """One server, of version 1."""
    pair[0].serve(1)
    return pair[0]


@pytest.fixture
def different(pair: list[Versions]) -> list[Versions]:
    """Version 1 here, version 2 there."""
    pair[0].serve(1)
    pair[1].serve(2)
    return pair


@pytest.fixture(scope="module")
def logits(pair: list[Versions]) -> dict[str, Logits]:
    """By version, in the caller's order."""
    found = {}
    with RerankClient(pair[0].target, model=NAME, timeout_s=20.0) as client:
        for version in (2, 1):
            pair[0].serve(version)
            result = client.rerank(QUERY, DOCUMENTS)
            assert (result.model_version, result.timings.requests) == (str(version), 5)
            found[result.model_version] = logits_of(result)
    assert np.allclose(found["2"] - found["1"], 3.0, atol=0.01)
    return found


def activate(folder: Path, version: int, *, pairs: int = PAIRS_A_REQUEST) -> None:
    """The config is written anew, and sub-requests of the size that these tests want."""
    store.activate(folder, NAME, version)
    path = folder / NAME / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 256", f"max_batch_size: {pairs}"))


def logits_of(result: RerankResult[str]) -> Logits:
    """In the caller's order."""
    assert sorted(ranked.index for ranked in result) == list(range(len(DOCUMENTS)))
    return np.array([ranked.logit for ranked in sorted(result, key=lambda ranked: ranked.index)])


def check_of_one_version(result: RerankResult[str], logits: dict[str, Logits]) -> str:
    """Which; every logit is right for it."""
    assert np.allclose(logits_of(result), logits[result.model_version], atol=1e-3)
    ranked_logits = np.array([ranked.logit for ranked in result], np.float64)
    assert np.allclose(np.array([ranked.score for ranked in result], np.float64), 1 / (1 + np.exp(-ranked_logits)))
    return result.model_version


@pytest.mark.parametrize("concurrency", [8, 1])
def test_versions_change_under_load_and_the_client_follows(
    one: Versions, logits: dict[str, Logits], concurrency: int
) -> None:
    """Parts sent one after the other meet a change, forth or back, in the middle of a request."""
    options = TritonOptions(concurrency=concurrency)
    with RerankClient(one.target, model=NAME, timeout_s=20.0, options=options) as client:
        assert client.model_info().version == "1"
        with Load(lambda _: check_of_one_version(client.rerank(QUERY, DOCUMENTS), logits), threads=THREADS) as load:
            for version in (2, 1, 2, 1, 2):
                load.wait_for(20)
                one.serve(version)
            swapped_s = time.monotonic()
            load.wait_for(40)
        counts = Counter(sample.result for sample in load.samples)
        print(f"{len(load.samples)} answers by version: {dict(counts)}")
        assert load.errors == []
        assert set(counts) == {"1", "2"}
        assert {sample.result for sample in load.between(swapped_s, np.inf)} == {"2"}
        assert client.model_info().version == "2"


def test_a_model_that_is_unloaded_and_loaded_again_under_load(one: Versions, logits: dict[str, Logits]) -> None:
    """Typed errors while it is away, and right answers from the same client before and after."""
    with (
        RerankClient(one.target, model=NAME, timeout_s=20.0) as client,
        triton.InferenceServerClient(one.target) as raw,
    ):
        with Load(
            lambda _: check_of_one_version(client.rerank(QUERY, DOCUMENTS), logits), threads=THREADS, pause_s=0.02
        ) as load:
            load.wait_for(40)
            raw.unload_model(NAME)
            assert wait_until(lambda: not client.is_ready(), 10)
            away_s = time.monotonic()
            load.wait_for(40)
            back_s = time.monotonic()
            raw.load_model(NAME)
            assert wait_until(client.is_ready, 10)
            ready_s = time.monotonic()
            load.wait_for(40)
        away = [sample.error for sample in load.between(away_s, back_s) if sample.error is not None]
        print("while it was away:", Counter(f"{type(error).__name__}: {error}"[:200] for error in away))
        assert away and all(isinstance(error, ModelNotReadyError) for error in away)
        assert all(isinstance(error, RerankError) for error in load.errors)
        assert [sample.error for sample in load.between(ready_s, np.inf)] == [None] * len(load.between(ready_s, np.inf))


def test_a_model_with_other_limits_is_asked_by_them(one: Versions) -> None:
    """Eight pairs a request became five: what the client learned no longer holds."""
    with RerankClient(one.target, model=NAME, timeout_s=20.0) as client:
        assert client.rerank(QUERY, DOCUMENTS).timings.requests == 5
        activate(one.repository, 1, pairs=5)
        reload(one.target, NAME)
        result = client.rerank(QUERY, DOCUMENTS)
        assert (len(result), result.timings.requests) == (len(DOCUMENTS), 8)
        assert client.model_info().max_batch_size == 5


def test_a_server_with_other_limits_than_the_next_is_asked_by_its_own(different: list[Versions]) -> None:
    """One of two was told that a request has five pairs at most, the other one takes eight."""
    activate(different[1].repository, 1, pairs=5)
    reload(different[1].target, NAME)
    target, requests = ",".join(server.target for server in different), Counter[int]()
    for _ in range(10):  # clients that learn the limits from either
        with RerankClient(target, model=NAME, timeout_s=20.0) as client:
            for _ in range(3):
                requests[client.rerank(QUERY, DOCUMENTS).timings.requests] += 1
                client.model_info()
                client.is_ready()
    print(requests)
    assert set(requests) <= {5, 8}


def test_parts_of_one_request_are_never_of_two_versions(different: list[Versions], logits: dict[str, Logits]) -> None:
    """While servers are being updated one by one, the parts that the wrong version answered are asked again."""
    target = ",".join(server.target for server in different)
    with RerankClient(target, model=NAME, timeout_s=20.0) as client:
        with Load(lambda _: check_of_one_version(client.rerank(QUERY, DOCUMENTS), logits), threads=4) as load:
            load.wait_for(100)
        counts = Counter(sample.result or type(sample.error).__name__ for sample in load.samples)
        print(f"split requests to servers of two versions: {dict(counts)}")
        assert all(isinstance(error, InvalidResponseError) and error.falls_back for error in load.errors)
        assert len(load.errors) <= len(load.samples) / 20
        assert {"1", "2"} <= set(counts)
        different[0].serve(2)
        with Load(lambda _: check_of_one_version(client.rerank(QUERY, DOCUMENTS), logits), threads=4) as load:
            load.wait_for(40)
        assert {sample.result for sample in load.samples} == {"2"}


def test_scores_are_made_as_the_version_that_answered_makes_them(different: list[Versions]) -> None:
    """One of two servers was told of a model that was replaced by one with another activation."""
    path = different[1].repository / NAME / "config.pbtxt"
    path.write_text(path.read_text().replace('string_value: "sigmoid"', 'string_value: "identity"'))
    reload(different[1].target, NAME)
    with RerankClient(",".join(server.target for server in different), model=NAME, timeout_s=20.0) as client:
        results = [client.rerank(QUERY, DOCUMENTS[:PAIRS_A_REQUEST]) for _ in range(40)]
    assert {result.model_version for result in results} == {"1", "2"}
    for result in results:
        told = np.array([ranked.logit for ranked in result], np.float64)
        scores = told if result.model_version == "2" else 1 / (1 + np.exp(-told))
        assert np.allclose(np.array([ranked.score for ranked in result], np.float64), scores), result.model_version


def test_one_of_two_servers_does_not_have_the_model(different: list[Versions]) -> None:
    """What it refuses is sent to the other one, and soon nothing is sent to it."""
    with triton.InferenceServerClient(different[0].target) as raw:
        raw.unload_model(NAME)
        assert wait_until(lambda: not raw.is_model_ready(NAME), 10)
    target = ",".join(server.target for server in different)
    with RerankClient(target, model=NAME, timeout_s=20.0, options=TritonOptions(concurrency=1)) as client:
        assert wait_until(lambda: is_answered(client), 10)
        with Load(lambda _: client.score(QUERY, DOCUMENTS[:8]), threads=THREADS, pause_s=0.02) as load:
            load.wait_for(200)
    failed = [type(error).__name__ for error in load.errors]
    print(f"{len(failed)} of {len(load.samples)} failed", Counter(failed))
    assert len(failed) < len(load.samples) / 20


def is_answered(client: RerankClient) -> bool:
    try:
        return len(client.score(QUERY, DOCUMENTS[:8])) == 8
    except RerankError:
        return False
