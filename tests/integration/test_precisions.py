"""Both families in every precision, exported by the pipeline and answered by one real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.tritons import start

from triton_rerank import RerankClient
from triton_rerank_export.gate import parity
from triton_rerank_export.gate.reference import Reference
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository.check import check_repository
from triton_rerank_export.repository.manifest import read_manifest
from triton_rerank_export.repository.triton_config import PRECISIONS
from triton_rerank_server import TritonServer
from triton_rerank_server.backends.encoder.onnxruntime_session import int8_saturates

FAMILIES = ("tiny-bert", "tiny-xlmr")
# int8 and bf16 are held to their order by the gate; this is against nonsense
BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.5, "bf16": 0.1}
# name -> what is exported; the standard graph is the one for TensorRT, served here without it
VARIANTS: dict[str, dict[str, Any]] = {
    f"{family}-{precision}": {"precision": precision} for family in FAMILIES for precision in PRECISIONS
}
STATIC = {f"{family}-static-int8": {"precision": "int8", "engine": "openvino"} for family in FAMILIES}
SATURATES = int8_saturates()
if not SATURATES:
    VARIANTS |= STATIC


def family_of(name: str) -> str:
    return next(family for family in FAMILIES if name.startswith(family))


@pytest.fixture(scope="module")
def every_precision(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights hold documents closer together than the gate's bounds of int8 are for: the logits count here."""
    repository = tmp_path_factory.mktemp("precisions") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parity.BOUNDS, "int8", parity.Bounds(BOUNDS["int8"], 0.9, 0.9))
        for name, choice in VARIANTS.items():
            options = ExportOptions(name=name, **choice)
            export_model(str(checkpoints[family_of(name)]), repository, options, on_step=lambda _: None)
    return repository


@pytest.fixture(scope="module")
def running(every_precision: Path) -> Iterator[TritonServer]:
    with start(every_precision) as server:
        yield server


def test_the_repository_is_in_order(every_precision: Path) -> None:
    assert check_repository(every_precision) == sorted(VARIANTS)
    for name in VARIANTS:
        assert read_manifest(every_precision / name / "1" / "manifest.json").parity["pairs"] >= 200  # the whole gate


@pytest.mark.skipif(
    SATURATES, reason="static int8: no VNNI here, so OpenVINO saturates, and the gate refuses the export"
)
def test_static_int8_is_served_too() -> None:
    assert VARIANTS.items() >= STATIC.items()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_served_logits_are_pytorchs(
    name: str, running: TritonServer, checkpoints: dict[str, Path], passages: list[str]
) -> None:
    family, precision = family_of(name), name.rpartition("-")[2]
    documents = [*passages, "", "長い文書 🙂", " ".join(passages)]
    expected = Reference(checkpoints[family], max_length=128).logits("how to zip a file?", documents)
    with RerankClient(running.grpc_target, model=name, timeout_s=60.0) as client:
        assert client.model_info().precision == precision
        ranking = sorted(client.rerank("how to zip a file?", documents), key=lambda ranked: ranked.index)
    got = np.array([ranked.logit for ranked in ranking], dtype=np.float32)
    assert np.max(np.abs(got - expected)) <= BOUNDS[precision]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_accelerators_graph_is_exported_with_its_config(
    family: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Standard operators only, named after its weights; the gate has compared it. Only a GPU node can serve it."""
    options = ExportOptions(precision="fp16", accelerator="tensorrt")
    result = export_model(str(checkpoints[family]), tmp_path / "r", options, on_step=lambda _: None)
    assert result.report.max_logit_difference <= 1e-2
    graph = onnx.load(tmp_path / "r" / f"{family}-encoder" / "1" / "model.onnx").graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert graph.name.startswith("weights_")
    assert check_repository(tmp_path / "r") == [family]
    assert read_manifest(tmp_path / "r" / family / "1" / "manifest.json").model.accelerator == "tensorrt"


def test_a_tensorrt_engine_is_refused_at_once_where_there_is_no_gpu(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from triton_rerank_export.errors import ExportError

    steps: list[str] = []
    options = ExportOptions(precision="fp16", engine="tensorrt")
    with pytest.raises(ExportError, match="no TensorRT plan can be built here: .*docker run --rm --gpus all"):
        export_model(str(checkpoints["tiny-bert"]), tmp_path / "r", options, on_step=steps.append)
    assert steps == []
    assert not (tmp_path / "r").exists()
