"""Continuous scheduling in a real Triton: short requests pass long ones, and each request has its own fate."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from support.tritons import NAME, computed, edited, only_bert, start, wait_until

from triton_rerank import RerankClient
from triton_rerank.contract import ENCODER_SUFFIX, MANIFEST_FILE, SCHEDULING
from triton_rerank_server import TritonServer

DEMO = "minilm-l6-demo"
ENCODER = NAME + ENCODER_SUFFIX
ROWS, WIDTH = 256, 128  # of the largest request that tiny-bert takes
WAITING = 4  # of these, one more is refused


@pytest.fixture(scope="module")
def server(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = only_bert(model_repository, tmp_path_factory.mktemp("continuous") / "model_repository")
    for source in model_repository.glob(f"{DEMO}*"):
        shutil.copytree(source, folder / source.name)
    for encoder in (ENCODER, DEMO + ENCODER_SUFFIX):
        with edited(folder / encoder) as config:
            config.parameters[SCHEDULING].string_value = "continuous"
            # a busy machine is no refusal
            config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 0
            config.parameters["max_waiting_tokens"].string_value = str(WAITING * ROWS * WIDTH)
    with start(folder) as running:
        yield running


def request(rows: int, width: int, seed: int = 0, wrong_id: int | None = None) -> list[Any]:
    ids = np.random.default_rng(seed).integers(5, 200, size=(rows, width))
    if wrong_id is not None:
        ids[-1, 1] = wrong_id
    tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    inputs = []
    for name, array in tensors.items():
        inputs.append(triton.InferInput(name, list(array.shape), "INT64"))
        inputs[-1].set_data_from_numpy(array)
    return inputs


class Asked:
    """Requests under way, and what came of them in the order in which it came."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client
        self.came: queue.Queue[tuple[str, Any]] = queue.Queue()

    def ask(self, name: str, inputs: list[Any], *, encoder: str = ENCODER, **more: Any) -> Any:
        def answered(result: Any, error: Any) -> None:
            self.came.put((name, error or result.as_numpy("logits")))

        return self._client.async_infer(encoder, inputs, answered, client_timeout=120.0, **more)

    def get(self, count: int) -> dict[str, Any]:
        return dict(self.came.get(timeout=120) for _ in range(count))


@pytest.fixture
def asked(server: TritonServer) -> Iterator[Asked]:
    with triton.InferenceServerClient(server.grpc_target) as client:
        yield Asked(client)


def logits_alone(asked: Asked, inputs: list[Any]) -> Any:
    asked.ask("alone", inputs)
    return asked.get(1)["alone"]


def test_a_short_request_passes_long_ones(asked: Asked) -> None:
    for number in range(3):  # a second of work or more, each
        asked.ask(f"long {number}", request(64, WIDTH, seed=number), encoder=DEMO + ENCODER_SUFFIX)
    asked.ask("short", request(1, 32, seed=9), encoder=DEMO + ENCODER_SUFFIX)
    order = [asked.came.get(timeout=120)[0] for _ in range(4)]
    assert order[-1] != "short"


def test_each_request_gets_its_own_logits(asked: Asked) -> None:
    requests = {f"long {number}": request(ROWS, WIDTH, seed=number) for number in range(3)}
    requests["short"] = request(1, 32, seed=9)
    for name, inputs in requests.items():
        asked.ask(name, inputs)
    for name, logits in asked.get(len(requests)).items():
        np.testing.assert_allclose(logits, logits_alone(asked, requests[name]), atol=1e-4)


@pytest.mark.parametrize("wrong_id", [10**8, -1])
def test_a_bad_id_fails_its_own_request_and_those_beside_it_are_answered(asked: Asked, wrong_id: int) -> None:
    asked.ask("busy", request(ROWS, WIDTH))
    for name in ("before", "after"):
        asked.ask(name, request(2, 64, seed=len(name)))
    asked.ask("bad", request(2, 64, wrong_id=wrong_id))
    found = asked.get(4)
    assert isinstance(found["bad"], triton.InferenceServerException)
    assert found["bad"].status() == "StatusCode.INVALID_ARGUMENT"
    assert "cannot score these tensors" in found["bad"].message()
    for name in ("before", "after"):
        np.testing.assert_allclose(found[name], logits_alone(asked, request(2, 64, seed=len(name))), atol=1e-4)


def test_one_request_too_many_is_overload_and_the_others_are_answered(asked: Asked) -> None:
    names = [str(number) for number in range(15 * WAITING)]
    for name in names:
        asked.ask(name, request(ROWS, WIDTH))
    found = asked.get(len(names))
    refused = [error for error in found.values() if isinstance(error, triton.InferenceServerException)]
    assert 0 < len(refused) < len(names)
    assert {error.status() for error in refused} == {"StatusCode.UNAVAILABLE"}
    assert all("Exceeds maximum queue size: 32768 tokens came and" in error.message() for error in refused)


def test_a_request_that_waited_longer_than_it_asked_for_is_refused_as_overload(
    server: TritonServer, asked: Asked
) -> None:
    before = computed(server.grpc_target, DEMO + ENCODER_SUFFIX)
    for name in ("busy", "busier"):  # half a second of work or more, each
        asked.ask(name, request(128, 64), encoder=DEMO + ENCODER_SUFFIX)
    assert wait_until(lambda: computed(server.grpc_target, DEMO + ENCODER_SUFFIX) > before, 60)
    asked.ask("late", request(255, WIDTH), encoder=DEMO + ENCODER_SUFFIX, timeout=1_000)
    found = asked.get(3)
    assert found["late"].status() == "StatusCode.UNAVAILABLE"
    assert "Request timeout expired" in found["late"].message()
    with RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
        assert len(client.score("a query", ["a", "b"])) == 2


def test_the_server_ends_while_requests_wait_and_all_are_answered(tiny_repository: Path, tmp_path: Path) -> None:
    folder = only_bert(tiny_repository, tmp_path / "model_repository")
    with edited(folder / ENCODER) as config:
        config.parameters[SCHEDULING].string_value = "continuous"
    with start(folder) as running, triton.InferenceServerClient(running.grpc_target) as client:
        asked = Asked(client)
        for number in range(4):
            asked.ask(str(number), request(ROWS, WIDTH, seed=number))
        assert wait_until(
            lambda: client.get_inference_statistics(ENCODER).model_stats[0].inference_count >= 4 * ROWS, 60
        )
        running.stop()
        assert all(isinstance(logits, np.ndarray) for logits in asked.get(4).values())


def test_a_queue_that_takes_one_request_of_one_token_for_a_microsecond_does_not_refuse_triton_its_own_warm_up(
    model_repository: Path, tmp_path: Path
) -> None:
    """A refusal there ends Triton 2.51 with a segmentation fault."""
    folder = only_bert(model_repository, tmp_path / "model_repository")
    with edited(folder / ENCODER) as config:
        assert config.parameters[SCHEDULING].string_value == "continuous"
        assert max(each.batch_size for each in config.model_warmup) > 1
        config.dynamic_batching.default_queue_policy.max_queue_size = 1
        config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 1
        config.parameters["max_waiting_tokens"].string_value = "1"
    (folder / NAME / "1" / MANIFEST_FILE).unlink()  # its canary would be refused
    with start(folder) as running, triton.InferenceServerClient(running.grpc_target) as client:
        assert client.is_model_ready(NAME)
