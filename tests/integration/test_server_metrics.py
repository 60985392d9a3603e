"""What our backends count, as Triton's own /metrics tells it after real requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton
from support.load import Load
from support.tritons import EXPLICIT, NAME, edited, only_bert, start, wait_until

from triton_rerank import RerankClient
from triton_rerank.contract import ENCODER_SUFFIX, SCHEDULING, TOKENIZER_SUFFIX
from triton_rerank_server import TritonServer
from triton_rerank_server.backends.meters import PERIOD_S

QUERY = "how to zip a file"
TEXTS = [f"gzip makes file {number} smaller" for number in range(20)]
LONG = [f"{number} a binary heap keeps its largest element at the root " * 40 for number in range(5)]


@pytest.fixture(scope="module")
def server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Two instances of each step, which are processes of their own."""
    folder = only_bert(tiny_repository, tmp_path_factory.mktemp("counted") / "model_repository")
    for step in (TOKENIZER_SUFFIX, ENCODER_SUFFIX):
        with edited(folder / f"{NAME}{step}") as config:
            config.instance_group[0].count = 2
    with start(folder, *EXPLICIT) as running:
        yield running


def values(server: TritonServer) -> dict[str, float]:
    """Those of ours by name, over all series."""
    found: dict[str, float] = {}
    for line in httpx.get(f"http://{server.metrics_target}/metrics").text.splitlines():
        if line.startswith("triton_rerank_"):
            series, value = line.rsplit(" ", 1)
            name = series.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def grown(server: TritonServer, before: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("triton_rerank_"): value - before[name] for name, value in values(server).items()}


def at_rest(server: TritonServer) -> dict[str, float]:
    """What it says when the canary's and warm-up's pairs are told; each step tells by itself, once a second."""
    seen = values(server)
    while True:
        time.sleep(2.5 * PERIOD_S)
        before, seen = seen, values(server)
        if seen == before:
            return seen


def test_pairs_tokens_cuts_and_micro_batches_are_those_of_the_requests(server: TritonServer) -> None:
    before = at_rest(server)
    pairs = tokens = cut = 0
    with RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
        for _ in range(5):
            found = client.rerank(QUERY, [*TEXTS, *LONG])
            pairs += len(found)
            tokens += found.usage.token_count
            cut += sum(ranked.truncated for ranked in found)
        assert (pairs, cut) == (125, 25)
        queries = client.rerank(LONG[0], TEXTS[:3])  # of a pair the longer part is cut
        assert [ranked.truncated for ranked in queries] == [True] * 3
    pairs, tokens = pairs + 3, tokens + queries.usage.token_count
    expected = {
        "pairs_total": pairs,
        "tokens_total": tokens,
        "truncated_pairs_total": cut + 3,
        "truncated_queries_total": 3,
        "truncated_documents_total": cut,
        "computed_pairs_total": pairs,
        "computed_tokens_total": tokens,
    }
    assert wait_until(lambda: expected.items() <= grown(server, before).items(), 30), grown(server, before)
    found_now = grown(server, before)
    assert 5 <= found_now["micro_batches_total"] < pairs
    assert found_now["padded_tokens_total"] >= tokens


def test_counts_go_on_where_a_version_is_loaded_again(server: TritonServer) -> None:
    """Otherwise a reload of Triton would be seen as a restart, and its counts as a burst."""
    before = at_rest(server)
    with triton.InferenceServerClient(server.grpc_target) as control:
        for model in (NAME, NAME + TOKENIZER_SUFFIX, NAME + ENCODER_SUFFIX):
            control.unload_model(model)
        for model in (NAME + TOKENIZER_SUFFIX, NAME + ENCODER_SUFFIX, NAME):
            assert wait_until(lambda model=model: loaded(control, model), 60)  # type: ignore[misc]
    with RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
        client.rerank(QUERY, TEXTS)
    assert wait_until(lambda: grown(server, before)["pairs_total"] == len(TEXTS), 30), grown(server, before)


def loaded(control: triton.InferenceServerClient, model: str) -> bool:
    """Triton refuses while it still unloads."""
    try:
        control.load_model(model)
    except triton.InferenceServerException:
        return False
    return bool(control.is_model_ready(model))


def test_pairs_that_wait_under_continuous_scheduling_are_seen(tiny_repository: Path, tmp_path: Path) -> None:
    folder = only_bert(tiny_repository, tmp_path / "model_repository")
    with edited(folder / f"{NAME}{ENCODER_SUFFIX}") as config:
        config.parameters[SCHEDULING].string_value = "continuous"
    for step in (TOKENIZER_SUFFIX, ENCODER_SUFFIX):
        with edited(folder / f"{NAME}{step}") as config:  # a busy machine may take longer
            config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 0
    documents = [text[:600] for text in LONG] * 50
    waited, waiting = "triton_rerank_waited_seconds_total", "triton_rerank_waiting_pairs"
    with start(folder) as server, RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
        before = at_rest(server)
        asked = [f"{number} {text}" for number, text in enumerate(documents)]
        with Load(lambda _: client.rerank(QUERY, asked), threads=6) as load:
            assert wait_until(lambda: values(server)[waiting] > 0, 60)
            load.wait_for(6, 60)
        assert load.errors == []
        assert wait_until(lambda: values(server)[waiting] == 0, 30)
        assert values(server)["triton_rerank_waiting_tokens"] == 0
        assert wait_until(lambda: values(server)[waited] > before[waited], 30)


def test_a_server_without_metrics_serves(tiny_repository: Path, tmp_path: Path) -> None:
    folder = only_bert(tiny_repository, tmp_path / "model_repository")
    with start(folder, "--allow-metrics=false") as server:
        with pytest.raises(httpx.TransportError):
            values(server)
        with RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
            assert len(client.rerank(QUERY, TEXTS)) == len(TEXTS)
