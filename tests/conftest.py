"""Session-wide: checkpoints, an exported repository, and one real Triton that serves it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before either framework is imported: tests call nobody
os.environ["LANGSMITH_TRACING"] = "false"

import pytest
import torch
from support.tiny_models import BOUNDED, write_fine_tuned, write_tiny_bert, write_tiny_xlmr

from triton_rerank import RerankClient
from triton_rerank_export import demo_model
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_server import ServerConfig, TritonServer

ROOT = Path(__file__).parent.parent
DEMO = "minilm-l6-demo"
TINY = ("tiny-bert", "tiny-xlmr")


@pytest.fixture(autouse=True, scope="session")
def _one_thread_at_first() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models: threads that wait for each other on busy cores take ten times as long. Code under test may ask."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PyTorch checkpoint folders by public model name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "tiny-bert": write_tiny_bert(folder / "tiny-bert"),
        "tiny-xlmr": write_tiny_xlmr(folder / "tiny-xlmr"),
        DEMO: demo_model.assemble(folder / DEMO),
    }


@pytest.fixture(scope="session")
def tiny_repository(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tiny models in fp32, with bounded queues. Tests that change it copy it first."""
    options = ExportOptions(precision="fp32", **BOUNDED)
    repository = tmp_path_factory.mktemp("tiny") / "model_repository"
    for name in TINY:
        export_model(str(checkpoints[name]), repository, options, on_step=lambda _: None)
    return repository


@pytest.fixture(scope="session")
def fine_tuned(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-bert after another training step: its logits are 3 higher."""
    return write_fine_tuned(checkpoints["tiny-bert"], tmp_path_factory.mktemp("fine-tuned") / "tiny-bert")


@pytest.fixture(scope="session")
def two_versions(tiny_repository: Path, fine_tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-bert as version 1, and fine-tuned as version 2, which is active. Tests that change it copy it first."""
    repository = Path(shutil.copytree(tiny_repository, tmp_path_factory.mktemp("versions") / "model_repository"))
    export_model(str(fine_tuned), repository, ExportOptions(precision="fp32", **BOUNDED), on_step=lambda _: None)
    return repository


@pytest.fixture(scope="session")
def model_repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int8 beside both tiny models in fp32."""
    repository = tmp_path_factory.mktemp("full") / "model_repository"
    export_model(DEMO, repository, ExportOptions(precision="int8", **BOUNDED), on_step=lambda _: None)
    for folder in tiny_repository.iterdir():
        (repository / folder.name).symlink_to(folder)
    return repository


@pytest.fixture(scope="session")
def server(model_repository: Path) -> Iterator[TritonServer]:
    """One real Triton for all tests that do not harm it."""
    with TritonServer(ServerConfig(model_repository, grpc_port=0, http_port=0, metrics_port=0)) as running:
        yield running


@pytest.fixture
def demo_client(server: TritonServer) -> Iterator[RerankClient]:
    with RerankClient(server.grpc_target, model=DEMO, timeout_s=60.0) as client:
        yield client


@pytest.fixture(scope="session")
def passages() -> list[str]:
    return (ROOT / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def example_queries() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "examples" / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
