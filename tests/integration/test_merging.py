"""Requests of any widths are computed together, and what is wrong with one of them is told to that one only."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from support.tiny_models import BOUNDED
from support.tritons import NAME, computed, only_bert, start, wait_until
from tritonclient.grpc import model_config_pb2

from triton_rerank.contract import CONFIG_FILE, ENCODER_BACKEND, ENCODER_SUFFIX, MANIFEST_FILE, TOKENIZER_SUFFIX
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository.triton_config import Precision
from triton_rerank_server import TritonServer

ENCODER = NAME + ENCODER_SUFFIX
ROWS = 8  # an execution begins when so many are there
LONG_DELAY_US = 30_000_000  # and not before


def configured(repository: Path, folder: Path, backend: str = ENCODER_BACKEND, *, ragged: bool = False) -> Path:
    """tiny-bert, whose encoder waits until its batch is full: what is sent together is executed together."""
    only_bert(repository, folder)
    (folder / NAME / "1" / MANIFEST_FILE).unlink()  # its canary is no full batch
    for name in (NAME, NAME + TOKENIZER_SUFFIX, ENCODER):
        path = folder / name / CONFIG_FILE
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        config.max_batch_size = ROWS
        if name == ENCODER:
            config.backend = backend
            config.dynamic_batching.max_queue_delay_microseconds = LONG_DELAY_US
            config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 0
            del config.model_warmup[:]
            if backend != ENCODER_BACKEND and not ragged:  # as it was exported before our backend had a name
                del config.parameters["engine"]
                for tensor in config.input:
                    tensor.allow_ragged_batch = False
        path.write_text(text_format.MessageToString(config))
    return folder


@pytest.fixture(scope="module")
def server(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with start(configured(tiny_repository, tmp_path_factory.mktemp("merging") / "model_repository")) as running:
        yield running


def request(width: int, seed: int, rows: int = 2, wrong_id: int | None = None) -> list[Any]:
    """Tensors as the tokenizer step makes them: a rectangle, right-padded."""
    mask = np.zeros((rows, width), np.int64)
    for row, length in enumerate(np.random.default_rng(seed).integers(width // 2, width + 1, size=rows)):
        mask[row, :length] = 1
    ids = np.random.default_rng(seed).integers(5, 200, size=mask.shape) * mask
    if wrong_id is not None:
        ids[0, 1] = wrong_id
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    inputs = []
    for name, array in tensors.items():
        inputs.append(triton.InferInput(name, list(array.shape), "INT64"))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def together(server: TritonServer, requests: list[list[Any]]) -> list[Any]:
    """Answers, logits or the error, in the order of the requests."""
    came: queue.Queue[tuple[int, Any]] = queue.Queue()
    with triton.InferenceServerClient(server.grpc_target) as client:
        for number, inputs in enumerate(requests):

            def answered(result: Any, error: Any, number: int = number) -> None:
                came.put((number, error or result.as_numpy("logits")))

            client.async_infer(ENCODER, inputs, answered, client_timeout=60.0)
        found = dict(came.get(timeout=60) for _ in requests)
    return [found[number] for number in range(len(requests))]


def executions(server: TritonServer, before: int = 0) -> int:
    """Of the encoder, once there are more than before: Triton counts after it has answered."""
    wait_until(lambda: computed(server.grpc_target, ENCODER) > before, 10)
    time.sleep(0.2)
    return computed(server.grpc_target, ENCODER)


def metric(server: TritonServer, name: str) -> float:
    """The sum over its series; our backends tell Triton once a second."""
    lines = httpx.get(f"http://{server.metrics_target}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def alone(server: TritonServer, inputs: list[Any]) -> Any:
    """The same rows, beside others that fill the batch up."""
    return together(server, [inputs, *(request(16, seed) for seed in range(3))])[0]


def test_requests_of_different_widths_are_one_execution_and_each_gets_its_own_logits(server: TritonServer) -> None:
    requests = [request(width, seed) for seed, width in enumerate((16, 32, 48, 64))]
    time.sleep(0.2)  # what was answered before is counted
    before = computed(server.grpc_target, ENCODER)
    answers = together(server, requests)
    assert executions(server, before) == before + 1
    for inputs, logits in zip(requests, answers, strict=True):
        np.testing.assert_allclose(logits, alone(server, inputs), atol=1e-5)
    assert len({round(float(logit), 4) for logits in answers for logit in logits[:, 0]}) > 4


@pytest.mark.parametrize("wrong_id", [10**8, -1])
def test_a_bad_id_fails_its_own_request_as_its_callers_fault_and_the_merged_ones_are_answered(
    server: TritonServer, wrong_id: int
) -> None:
    good = [request(width, seed) for seed, width in enumerate((16, 32, 64))]
    time.sleep(0.2)  # what was answered before is counted
    before = computed(server.grpc_target, ENCODER)
    first, bad, *others = together(server, [good[0], request(48, 9, wrong_id=wrong_id), *good[1:]])
    assert executions(server, before) == before + 1
    assert isinstance(bad, triton.InferenceServerException)
    assert bad.status() == "StatusCode.INVALID_ARGUMENT"
    assert "cannot score these tensors" in bad.message()
    for inputs, logits in zip(good, [first, *others], strict=True):
        np.testing.assert_allclose(logits, alone(server, inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "native", "bound"), [("fp32", False, 1e-5), ("fp32", True, 1e-5), ("int8", False, 0.1)]
)
def test_a_flat_graph_computes_what_was_merged_without_padding(
    server: TritonServer,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    precision: Precision,
    native: bool,
    bound: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `--native` by our stand-in for the native backend, which Triton's wheel has not; its config is taken."""
    monkeypatch.setitem(parity.BOUNDS, "int8", parity.Bounds(bound, 0.9, 0.9))  # random weights: the logits count
    options = ExportOptions(precision=precision, graph="flat", native=native, **BOUNDED)
    export_model(str(checkpoints[NAME]), tmp_path / "exported", options, on_step=lambda _: None)
    backend = "onnxruntime" if native else ENCODER_BACKEND
    requests = [request(width, seed) for seed, width in enumerate((16, 32, 48, 64))]
    expected = together(server, requests)
    with start(configured(tmp_path / "exported", tmp_path / "model_repository", backend, ragged=True)) as flat:
        answers = together(flat, requests)
        assert executions(flat) == 1
        assert wait_until(lambda: metric(flat, "triton_rerank_computed_pairs_total") == ROWS, 10)
        padded, tokens = (metric(flat, f"triton_rerank_{name}_tokens_total") for name in ("padded", "computed"))
    for got, logits in zip(answers, expected, strict=True):
        np.testing.assert_allclose(got, logits, atol=bound)
    assert padded == tokens > 0


def test_a_repository_from_before_the_backend_had_a_name_is_served(tiny_repository: Path, tmp_path: Path) -> None:
    """Its encoder names onnxruntime and its inputs are not ragged; requests of one width merge, as they did."""
    with start(configured(tiny_repository, tmp_path / "model_repository", backend="onnxruntime")) as old:
        answers = together(old, [request(32, seed) for seed in range(4)])
        assert executions(old) == 1
    assert all(isinstance(logits, np.ndarray) for logits in answers)
