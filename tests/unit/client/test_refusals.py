"""Chains over real gRPC and HTTP: what refuses is an attempt, whatever it says no with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosted import KEY, Fault, HostedServer
from support.stand_in import StandIn, serve

from triton_rerank import (
    AllScorersFailedError,
    CohereScorer,
    FallbackScorer,
    RerankClient,
    Scorer,
    Tls,
    TritonOptions,
    TritonScorer,
)
from triton_rerank.testing import FakeScorer

MODEL = "tiny-bert"


@pytest.fixture(scope="module")
def server(tiny_repository: Path) -> Iterator[StandIn]:
    with serve(StandIn(tiny_repository)) as running:
        yield running


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    with HostedServer("cohere") as running:
        yield running


def cohere(hosted: HostedServer, name: str = "cohere") -> CohereScorer:
    return CohereScorer(KEY, model="m", base_url=hosted.url, name=name, retries=0)


def served_by(*scorers: Scorer) -> tuple[str, list[tuple[str, str]]]:
    with RerankClient(scorer=FallbackScorer(scorers), timeout_s=20.0) as client:
        result = client.rerank("a cat", ["a dog", "a cat"])
    assert result.degraded
    assert all(attempt.error in str(result.reason) for attempt in result.attempts)
    return result.served_by, [(attempt.scorer, attempt.error) for attempt in result.attempts]


@pytest.mark.parametrize(
    ("status", "error"), [(401, "ConfigurationError"), (403, "ConfigurationError"), (413, "RequestTooLargeError")]
)
def test_a_first_choice_that_says_no_over_http(
    status: int, error: str, hosted: HostedServer, server: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    hosted.always = Fault(status=status, body=b'{"message": "no"}')
    triton = TritonScorer(f"127.0.0.1:{server.port}", MODEL, name="triton")
    assert served_by(cohere(hosted), triton) == ("triton", [("cohere", error)])
    assert [record.levelno for record in caplog.records if record.levelno >= logging.ERROR] == [logging.ERROR]


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422])
def test_a_fallback_that_says_no_over_http(status: int, hosted: HostedServer) -> None:
    hosted.always = Fault(status=status, body=b'{"message": "no"}')
    gone = TritonScorer("127.0.0.1:1", MODEL, name="gone")
    name, attempts = served_by(gone, cohere(hosted))
    assert (name, [scorer for scorer, _ in attempts]) == ("first-stage-order", ["gone", "cohere"])
    with (
        RerankClient(scorer=FallbackScorer([gone, cohere(hosted)], fail_closed=True)) as client,
        pytest.raises(AllScorersFailedError, match=f"gone: .*; cohere: .*HTTP {status}"),
    ):
        client.rerank("q", ["a"])


def test_a_first_choice_whose_model_or_certificate_does_not_fit(server: StandIn, tmp_path: Path) -> None:
    target = f"127.0.0.1:{server.port}"
    tls = TritonOptions(tls=Tls(tmp_path / "expired-and-removed.pem"))
    step = f"{MODEL}-encoder"  # no model that export would serve
    for first, error in (
        (TritonScorer(target, MODEL, name="first", options=tls), "ConfigurationError"),
        (TritonScorer(target, step, name="first"), "NoRerankerError"),
    ):
        assert served_by(first, FakeScorer(name="second")) == ("second", [("first", error)])
