"""Clients and scorers in other processes: pickled or copied they are made anew, or say what to do."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosted import KEY
from support.stand_in import StandIn, serve

from triton_rerank import (
    AsyncRerankClient,
    CachedScorer,
    CascadeScorer,
    CohereScorer,
    ConfigurationError,
    FallbackScorer,
    FirstStageOrder,
    LocalScorer,
    RerankClient,
    TritonOptions,
    TritonScorer,
)
from triton_rerank.testing import FakeScorer

cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle, which Ray pickles with, is not installed")
MODEL = "tiny-bert"
WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.fixture(scope="module")
def server(tiny_repository: Path) -> Iterator[StandIn]:
    with serve(StandIn(tiny_repository)) as running:
        yield running


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_was_used_has_a_copy_that_works(way: str, server: StandIn) -> None:
    options = TritonOptions(headers={"authorization": "Bearer s3cret"}, retries=2)
    with RerankClient(f"127.0.0.1:{server.port}", model=MODEL, timeout_s=7.0, options=options) as client:
        scores = client.score("q", ["a", "b"])
        with WAYS[way](client) as made:
            assert made.scorer is not client.scorer, "made of a target, it is made anew"
            assert made.score("q", ["a", "b"]) == scores
            assert server.headers["authorization"] == "Bearer s3cret"
            assert made.scorer.options == options
        assert client.score("q", ["a", "b"]) == scores, "closing the copy closes nothing of the original"


@pytest.mark.parametrize("way", WAYS)
def test_every_scorer_has_copies(way: str, tiny_repository: Path) -> None:
    chain = FallbackScorer(
        [
            CascadeScorer(FakeScorer(name="light"), CachedScorer(FakeScorer(name="heavy"), max_pairs=3), keep=2),
            TritonScorer("127.0.0.1:1", MODEL, name="gone"),
            LocalScorer(tiny_repository, MODEL),
            CohereScorer(KEY, model="m"),
            FirstStageOrder(),
        ],
        name="site",
    )
    with RerankClient(scorer=chain) as client:
        client.rerank("a", ["a b", "c"])
        made = WAYS[way](client)
    assert list(made.scorer.counters()) == list(chain.counters())
    assert chain.counters()["cascade"].calls == 1
    assert made.scorer.counters()["cascade"].calls == (1 if way == "copy" else 0), "a shallow copy has the very scorer"
    assert made.rerank("a", ["a b", "c"])[0].document == "a b"
    assert isinstance(WAYS[way](AsyncRerankClient(scorer=chain)), AsyncRerankClient)


def _rerank(client: RerankClient) -> list[float]:
    with client:
        return client.score("q", ["a", "b"])


def test_a_client_goes_to_workers_that_are_spawned(server: StandIn) -> None:
    """stanfordnlp/dspy#99, ray-project/ray#15678: a client could be neither pickled nor copied for a worker."""
    with RerankClient(f"127.0.0.1:{server.port}", model=MODEL, timeout_s=60.0) as client:
        scores = client.score("q", ["a", "b"])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map(_rerank, [client, client]) == [scores, scores]


def test_what_cannot_be_copied_says_what_to_do() -> None:
    scorer = CohereScorer(KEY, model="m", ssl_context=ssl.create_default_context())
    for way in WAYS.values():
        with pytest.raises(ConfigurationError, match="ssl_context.*make the scorer in the process that uses it"):
            way(RerankClient(scorer=scorer)) if way is not copy.copy else copy.copy(scorer)


@pytest.mark.parametrize("cls", [RerankClient, AsyncRerankClient, TritonScorer, FallbackScorer])
def test_the_arguments_are_still_told(cls: type) -> None:
    assert "args" not in inspect.signature(cls).parameters
    assert {"name", "timeout_s"} & set(inspect.signature(cls).parameters)
