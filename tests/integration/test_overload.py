"""More is asked than servers can do, or nobody is there: typed errors, and never twice the load."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.load import Load, Sample, at_once
from support.slow_model import ENCODER, NAME, write_slow
from support.stand_in import DeadSocket, StandIn, serve
from support.tritons import computed, received, start, wait_until

from triton_rerank import OverloadedError, RerankClient, ServerUnavailableError, TritonOptions
from triton_rerank_server import TritonServer

QUERY, DOCUMENTS = "how to zip a file", ["a", "b", "c", "d"]
DELAY_S, QUEUE = 0.2, 2


@pytest.fixture(scope="module")
def slow(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton that takes 0.2 s a request, one at a time, and lets two wait."""
    folder = tmp_path_factory.mktemp("overload") / "model_repository"
    with start(write_slow(tiny_repository, folder, delay_s=DELAY_S, max_queue_size=QUEUE)) as server:
        yield server


def outcomes(samples: list[Sample]) -> Counter[str]:
    return Counter("answered" if sample.error is None else type(sample.error).__name__ for sample in samples)


def answers(client: RerankClient) -> bool:
    try:
        return len(client.score(QUERY, DOCUMENTS)) == len(DOCUMENTS)
    except OverloadedError:
        return False


@pytest.mark.parametrize("offered", [4, 12, 64])
def test_a_full_queue_is_overload_and_sees_no_request_more_than_twice(slow: TritonServer, offered: int) -> None:
    """Counted by Triton: each request that arrives passes the tokenizer, whose queue has room for all of these."""
    with RerankClient(slow.grpc_target, model=NAME, timeout_s=10.0) as client:
        client.score(QUERY, DOCUMENTS)
        before = received(slow.grpc_target)
        samples = at_once(lambda _: client.score(QUERY, DOCUMENTS), offered)
        on_the_wire = received(slow.grpc_target) - before
    print(f"offered {offered}, on the wire {on_the_wire}: {on_the_wire / offered:.2f}", dict(outcomes(samples)))
    assert set(outcomes(samples)) <= {"answered", "OverloadedError"}
    assert outcomes(samples)["answered"] >= 1
    assert offered == 4 or outcomes(samples)["OverloadedError"] >= 1
    assert offered <= on_the_wire <= 2 * offered
    refused = [sample.error for sample in samples if sample.error is not None]
    assert all("Exceeds maximum queue size" in str(error) and error.request_id for error in refused)  # type: ignore[attr-defined]


def test_an_overload_that_lasts_is_hardly_retried(slow: TritonServer) -> None:
    """gRPC's budget: once half of its tokens are spent, a request that is refused is not sent again."""
    with RerankClient(slow.grpc_target, model=NAME, timeout_s=10.0) as client:
        client.score(QUERY, DOCUMENTS)
        before = received(slow.grpc_target)
        with Load(lambda _: client.score(QUERY, DOCUMENTS), threads=16, pause_s=0.01) as load:
            load.wait_for(400)
        offered, on_the_wire = len(load.samples), received(slow.grpc_target) - before
    print(f"offered {offered}, on the wire {on_the_wire}: {on_the_wire / offered:.2f}", dict(outcomes(load.samples)))
    assert set(outcomes(load.samples)) == {"answered", "OverloadedError"}
    assert on_the_wire <= 1.5 * offered


def test_a_request_that_met_a_full_queue_is_answered_when_there_is_room_again(tiny_repository: Path) -> None:
    with serve(StandIn(tiny_repository, refusals=1)) as server:
        with RerankClient(f"127.0.0.1:{server.port}", model=NAME) as client:
            assert len(client.score(QUERY, DOCUMENTS)) == 4
        assert server.inferences == 2


def test_without_retries_every_request_is_sent_once(slow: TritonServer) -> None:
    with RerankClient(slow.grpc_target, model=NAME, options=TritonOptions(retries=0)) as client:
        client.score(QUERY, DOCUMENTS)
        before = received(slow.grpc_target)
        samples = at_once(lambda _: client.score(QUERY, DOCUMENTS), 12)
        assert received(slow.grpc_target) - before == 12
    assert outcomes(samples)["OverloadedError"] >= 1


@pytest.mark.parametrize(("retries", "most"), [(1, 2.0), (3, 4.0)])
def test_a_server_that_refuses_everything(tiny_repository: Path, retries: int, most: float) -> None:
    """With more than one retry the bound of 2 holds for many requests only, by the budget."""
    ratios = {}
    for offered in (1, 5, 200):
        with (
            serve(StandIn(tiny_repository, refusals=10**9)) as server,
            RerankClient(f"127.0.0.1:{server.port}", model=NAME, options=TritonOptions(retries=retries)) as client,
        ):
            client.model_info()
            for _ in range(offered // 20 or 1):
                samples = at_once(lambda _: client.score(QUERY, DOCUMENTS), min(offered, 20))
                assert set(outcomes(samples)) == {"OverloadedError"}
            ratios[offered] = server.inferences / offered
    print(f"retries={retries}: on the wire / offered", {n: round(ratio, 2) for n, ratio in ratios.items()})
    assert max(ratios.values()) <= most
    assert ratios[200] < 1.5


def test_a_dead_server_is_not_called_by_every_request() -> None:
    """Connections are tried at gRPC's pace, whatever is offered, and calls fail at once meanwhile."""
    with DeadSocket() as dead, RerankClient(f"127.0.0.1:{dead.port}", model=NAME, timeout_s=5.0) as client:
        began_s = time.monotonic()
        with Load(lambda _: client.score(QUERY, DOCUMENTS), threads=8, pause_s=0.05) as load:
            time.sleep(3)
        took_s = time.monotonic() - began_s
    print(f"offered {len(load.samples)}, connections {dead.connections} in {took_s:.1f} s")
    assert set(outcomes(load.samples)) == {ServerUnavailableError.__name__}
    assert max(sample.took_s for sample in load.samples) < 2.0
    assert dead.connections <= 2 * len(load.samples)
    assert dead.connections < 25


def test_overload_of_parts_cancels_the_others(slow: TritonServer) -> None:
    """A split request fails as a whole with the first part, and what was not sent yet is not sent."""
    options = TritonOptions(concurrency=8)
    with RerankClient(slow.grpc_target, model=NAME, timeout_s=10.0, options=options) as client:
        client.score(QUERY, DOCUMENTS)
        before = computed(slow.grpc_target, ENCODER)
        with pytest.raises(OverloadedError):
            client.score(QUERY, [f"document {number}" for number in range(64)])
        assert wait_until(lambda: answers(client), 10)
        assert computed(slow.grpc_target, ENCODER) - before < 64 / len(DOCUMENTS) / 2
