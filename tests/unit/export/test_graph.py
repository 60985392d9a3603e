"""Tracing and fusion: names, dynamic shapes, agreement with PyTorch, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.graphs import checkpoint_of, digests, export_stages, largest_difference, onnx_session
from torch import nn
from transformers import AutoModelForSequenceClassification

from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import reference
from triton_rerank_export.graph import graph_file, precision, trace

Stages = tuple[Checkpoint, dict[str, Path]]
FORMS = ("traced", "cut", "fused")


@pytest.fixture(scope="module", params=["tiny-bert", "tiny-xlmr"])
def stages(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Stages:
    return export_stages(checkpoints[request.param], tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("form", FORMS)
def test_every_stage_agrees_with_pytorch(stages: Stages, form: str) -> None:
    checkpoint, paths = stages
    assert largest_difference(paths[form], checkpoint) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_names_are_the_contracts_and_batch_and_length_are_dynamic(stages: Stages, form: str) -> None:
    checkpoint, paths = stages
    model = onnx.load(paths[form], load_external_data=False)
    segments = ["token_type_ids"] if checkpoint.token_type_ids else []
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask", *segments]
    assert [value.name for value in model.graph.output] == ["logits"]
    for value in model.graph.input:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["batch_size", "sequence_length"]


@pytest.mark.parametrize("form", ["traced", "cut"])
def test_the_traced_graph_has_standard_operators_only(stages: Stages, form: str) -> None:
    model = onnx.load(stages[1][form])
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)


def test_attention_is_fused_in_every_layer_and_embeddings_are_not(stages: Stages) -> None:
    operators = [node.op_type for node in onnx.load(stages[1]["fused"]).graph.node]
    assert operators.count("Attention") == 2
    assert not {"Softmax", "EmbedLayerNormalization"} & set(operators)


def test_behind_the_last_attention_only_first_tokens_are_computed(stages: Stages) -> None:
    checkpoint, paths = stages
    model = onnx.load(paths["fused"])
    norms = [node.output[0] for node in model.graph.node if node.op_type == "SkipLayerNormalization"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in norms)
    feed = {value.name: np.ones((3, 7), np.int64) for value in model.graph.input}
    shapes = [array.shape for array in onnx_session(model.SerializeToString()).run(norms, feed)]
    width = checkpoint.hidden_size
    assert shapes == [*[(3, 7, width)] * (len(norms) - 2), (3, 1, width), (3, 1, width)]


@pytest.mark.parametrize("form", FORMS)
def test_weights_lie_in_one_file_beside_the_graph(stages: Stages, form: str) -> None:
    path = stages[1][form]
    assert path.name == "model.onnx"
    assert trace.graph_files(path) == [path, path.with_name("model.onnx.data")]
    outside = [t for t in onnx.load(path, load_external_data=False).graph.initializer if graph_file.is_outside(t)]
    assert len(outside) > 10
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    assert {place["location"] for place in places} == {"model.onnx.data"}
    assert {int(place["offset"]) % 4096 for place in places} == {0}  # mapped, not copied, by ONNX Runtime
    onnx.checker.check_model(str(path))


def test_a_graph_without_a_data_file_is_one_file(stages: Stages, tmp_path: Path) -> None:
    path = precision.convert(stages[1]["cut"], "fp32", tmp_path, family=stages[0].family).path
    assert trace.graph_files(path) == [path]
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_exporting_and_fusing_twice_gives_the_same_bytes(stages: Stages, tmp_path: Path) -> None:
    checkpoint, paths = stages
    _, again = export_stages(checkpoint.folder, tmp_path)
    for form in FORMS:
        assert digests(again[form].parent) == digests(paths[form].parent), form


def test_the_model_keeps_its_table_of_words(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """It is cut while the graph is traced; whoever holds the model must not see that."""
    model = reference.load_model(checkpoints["tiny-xlmr"])
    before = model.get_input_embeddings().weight
    with trace.quiet():
        shapes = dict.fromkeys(("input_ids", "attention_mask"), (2, 16))
        trace._trace(model, tmp_path / "model.onnx", shapes, {0: "pairs", 1: "tokens"})
    assert model.get_input_embeddings().weight is before


def test_a_graph_in_which_attention_is_not_recognised_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_bias(folder: Path, **_: Any) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
        model.bert.encoder.layer[1].attention.self.key = nn.Linear(32, 32, bias=False)
        return model

    monkeypatch.setattr(reference, "load_model", without_bias)
    checkpoint = checkpoint_of(checkpoints["tiny-bert"])
    traced = trace.export_graph(checkpoint, tmp_path)
    with pytest.raises(ExportError, match=r"tiny-bert: 1 attention layers were fused and 1 were not; the graph is not"):
        trace.fuse(traced, checkpoint, tmp_path)
    assert not (tmp_path / "fused").exists()


def test_a_weight_that_the_checkpoint_has_not_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter renames a weight that it transposes; one of an unknown module cannot be found again."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unknown = nn.Parameter(torch.ones(1, 32))

        def forward(self, pooled: torch.Tensor) -> torch.Tensor:
            return pooled[:, None, :] @ self.unknown.T

    def with_other_head(folder: Path, **_: Any) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
        model.classifier = Head()
        return model

    monkeypatch.setattr(reference, "load_model", with_other_head)
    with pytest.raises(ExportError, match=r"tiny-bert: the graph has inputs .*onnx::MatMul_\d+.* were expected"):
        trace.export_graph(checkpoint_of(checkpoints["tiny-bert"]), tmp_path)
