"""Models that are no reranker, asked for by name in every dialect: steps of one, and a model of another kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from support.gateways import Running, running, wait_for
from support.tritons import NAME, only_bert, start
from tritonclient.grpc import model_config_pb2

from triton_rerank.contract import CONFIG_FILE, ENCODER_SUFFIX, TOKENIZER_SUFFIX
from triton_rerank_gateway import Settings
from triton_rerank_server import TritonServer

OTHER = "doubles-numbers"
OF_ANOTHER_KIND = (NAME + ENCODER_SUFFIX, NAME + TOKENIZER_SUFFIX, OTHER)
_DOUBLES = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(pb_utils.get_input_tensor_by_name(each, "number").as_numpy()) for each in requests]

    def _answer(self, numbers):
        return pb_utils.InferenceResponse([pb_utils.Tensor("twice", 2 * numbers)])
"""
_CONFIG = """
backend: "python" max_batch_size: 8
input { name: "number" data_type: TYPE_FP32 dims: 1 } output { name: "twice" data_type: TYPE_FP32 dims: 1 }
"""

BODY = {"query": "how to zip a file", "documents": ["gzip shrinks files", "the cat sat on the mat"]}
# Path, body, where the dialect's clients read what was wrong, and their statuses: name unknown here, no reranker.
DIALECTS: dict[str, tuple[str, dict[str, Any], str, int, int]] = {
    "cohere v1, jina, vllm, xinference": ("/v1/rerank", BODY, "message", 404, 400),
    "the same, read as jina": ("/rerank", BODY, "detail", 404, 400),
    "cohere v1": ("/cohere/v1/rerank", BODY, "message", 404, 400),
    "cohere v2": ("/v2/rerank", BODY, "message", 404, 400),
    "jina": ("/jina/v1/rerank", BODY, "detail", 404, 400),
    "voyage": ("/v1/rerank", {**BODY, "top_k": 1}, "detail", 400, 400),
    "tei": ("/rerank", {"query": BODY["query"], "texts": BODY["documents"]}, "error", 404, 424),
    "infinity": ("/infinity/rerank", BODY, "error.message", 400, 400),
    "vllm": ("/vllm/rerank", BODY, "error.message", 404, 400),
    "vllm, scores": ("/score", {"text_1": BODY["query"], "text_2": BODY["documents"]}, "error.message", 404, 400),
    "xinference": ("/xinference/v1/rerank", BODY, "detail", 404, 400),
    "nim": ("/v1/ranking", {"query": {"text": "zip"}, "passages": [{"text": "gzip"}]}, "detail", 404, 400),
}


@pytest.fixture(scope="module")
def triton(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A reranker, its steps, and a model that has nothing to do with either."""
    repository = only_bert(tiny_repository, tmp_path_factory.mktemp("kinds") / "model_repository")
    (repository / OTHER / "1").mkdir(parents=True)
    (repository / OTHER / "1" / "model.py").write_text(_DOUBLES)
    config = text_format.Parse(_CONFIG, model_config_pb2.ModelConfig(name=OTHER))
    (repository / OTHER / CONFIG_FILE).write_text(text_format.MessageToString(config))
    with start(repository) as server:
        yield server


@pytest.fixture(scope="module")
def careful(triton: TritonServer) -> Iterator[Running]:
    """Serves the reranker alone."""
    with running(Settings(port=0, target=triton.grpc_target, model=(NAME,))) as found:
        yield found


@pytest.fixture(scope="module")
def careless(triton: TritonServer) -> Iterator[Running]:
    """Was told to serve the others as well."""
    settings = Settings(port=0, target=triton.grpc_target, model=(NAME, *OF_ANOTHER_KIND), canary_interval_s=0.5)
    with running(settings) as found:
        yield found


def said(told: Any, where: str) -> str:
    for name in where.split("."):
        told = told[name]
    return str(told)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_model_of_another_kind_behind_the_gateway_is_unknown_to_callers(careful: Running, dialect: str) -> None:
    path, body, where, status, _ = DIALECTS[dialect]
    for name in OF_ANOTHER_KIND:
        found = careful.post(path, {**body, "model": name})
        assert found.status_code == status, found.text
        assert said(found.json(), where) == f"model '{name}' is not served here; see /v1/models"
    assert careful.post(path, {**body, "model": NAME}).status_code == 200


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_that_the_gateway_was_told_to_serve_is_said_to_be_no_reranker(careless: Running, dialect: str) -> None:
    path, body, where, _, status = DIALECTS[dialect]
    for name in OF_ANOTHER_KIND:
        found = careless.post(path, {**body, "model": name})
        assert found.status_code == status, found.text
        assert said(found.json(), where) == "the model of this name is no reranker; ask for another one, see /v1/models"
    assert careless.post(path, {**body, "model": NAME}).status_code == 200


def test_such_a_model_keeps_the_gateway_from_being_ready_and_health_names_it(careless: Running) -> None:
    def states() -> dict[str, str]:
        return careless.get("/health/ready").json()["models"]  # type: ignore[no-any-return]

    wait_for(lambda: all(state != "no canary was sent yet" for state in states().values()))
    assert careless.get("/health/ready").status_code == 503
    assert {name: states()[name] for name in OF_ANOTHER_KIND} == dict.fromkeys(OF_ANOTHER_KIND, "NoRerankerError")
    assert states()[NAME] != "NoRerankerError"


def test_what_triton_says_of_a_request_is_told_without_its_address(careful: Running, triton: TritonServer) -> None:
    found = careful.post("/v1/rerank", {**BODY, "instruction": "find code"})
    assert found.status_code == 400 and triton.grpc_target not in found.text
    assert found.json()["message"] == "instruction: this model has no prompt that one could stand in; leave it out"
