"""Attention as one operator of ONNX, for TensorRT: the padded graph's logits, and a form that its importer takes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from support.graphs import checkpoint_of, onnx_logits, tensor_types
from support.tiny_families import write_tiny

from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.gate.parity import BOUNDS
from triton_rerank_export.gate.served import EvaluatedSession
from triton_rerank_export.graph import trace
from triton_rerank_export.graph.attention import let_fall_apart
from triton_rerank_export.graph.precision import convert

Batch = dict[str, npt.NDArray[np.int64]]
BATCHES = {  # tokens of each row
    "one row": [7],
    "one token": [1],
    "rows of one token": [1, 9, 1],
    "full rows": [40, 40],
    "the longest rows": [128, 128],
    "ragged": [5, 17, 32, 9, 1, 128],
}


class Graphs(NamedTuple):
    checkpoint: Checkpoint
    parts: Path
    one: Path
    fp16: Path


@pytest.fixture(scope="module", params=["tiny-bert", "tiny-xlmr", "Roberta", "Camembert", "Electra"])
def graphs(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Graphs:
    work = tmp_path_factory.mktemp("attention")
    folder = checkpoints.get(request.param) or write_tiny(
        f"{request.param}ForSequenceClassification", work / "checkpoint"
    )
    checkpoint = checkpoint_of(folder)
    parts = trace.export_graph(checkpoint, work / "parts", cut_last_layer=True)
    one = trace.export_graph(checkpoint, work / "one", one_attention=True)
    return Graphs(checkpoint, parts, one, convert(one, "fp16", work, family=checkpoint.family).path)


def batch_of(checkpoint: Checkpoint, lengths: list[int]) -> Batch:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, np.random.default_rng(1).integers(5, 250, mask.shape), checkpoint.pad_token_id)
    segments = {"token_type_ids": mask * (np.arange(mask.shape[1]) > 4)} if checkpoint.token_type_ids else {}
    return {"input_ids": ids, "attention_mask": mask, **segments}


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_the_reference_evaluator_gives_the_padded_graphs_logits(graphs: Graphs, lengths: list[int]) -> None:
    batch = batch_of(graphs.checkpoint, lengths)
    (expected,) = onnx_logits(graphs.parts, [batch])
    assert np.abs(EvaluatedSession(str(graphs.one)).run(batch) - expected).max() < 1e-5
    in_fp16 = EvaluatedSession(str(graphs.fp16)).run(batch)
    assert np.abs(in_fp16 - expected).max() < BOUNDS["fp16"].max_logit_difference


def test_a_row_of_nothing_but_padding_has_a_logit_and_moves_no_other(graphs: Graphs) -> None:
    """A softmax over nothing is NaN, and its values times zero are NaN as well."""
    batch = batch_of(graphs.checkpoint, [20, 9, 12])
    batch["attention_mask"][1] = 0
    (expected,) = onnx_logits(graphs.parts, [batch])
    got, in_fp16 = (EvaluatedSession(str(path)).run(batch) for path in (graphs.one, graphs.fp16))
    assert np.abs(got - expected)[[0, 2]].max() < 1e-5
    assert np.isfinite([got, in_fp16]).all()


def test_what_the_importer_asks_of_the_operator(graphs: Graphs) -> None:
    """onnx-tensorrt: one output, four dimensions each, a mask that is logical or of the queries' type; no softmax left.

    TensorRT's page of the operator: the mask's last two dimensions are those of queries and keys.
    """
    model, types = onnx.load(graphs.fp16), tensor_types(graphs.fp16)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(attention) == 2
    assert not [node for node in model.graph.node if node.op_type == "Softmax"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for node in attention for name in node.input)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(None, batch_of(graphs.checkpoint, [7, 20]))[1:]
    shapes = [array.shape for array in values]
    heads, size = graphs.checkpoint.n_heads, graphs.checkpoint.hidden_size // graphs.checkpoint.n_heads
    whole = (2, heads, 20, size)
    assert shapes == [whole] * 3 + [(2, 1, 20, 20), (2, heads, 1, size), whole, whole, (2, 1, 1, 20)]
    for node in attention:
        assert [types[name] for name in (*node.input, *node.output)] == ["float16"] * 3 + ["bool", "float16"]
        (scale,) = node.attribute
        assert scale.name == "scale"
        assert scale.f == pytest.approx(size**-0.5)


def test_the_graph_is_standard_and_strongly_typed(graphs: Graphs) -> None:
    model = onnx.load(graphs.fp16)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 23)]
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    typed = {value.name for value in inferred.graph.value_info} | {"logits"}
    assert {output for node in model.graph.node for output in node.output} <= typed


def test_the_word_for_tensorrt_changes_nothing_else(graphs: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.fp16.read_bytes())
    assert let_fall_apart(path)
    model, before = onnx.load(path), onnx.load(graphs.fp16)
    for node in model.graph.node:
        if node.op_type == "Attention":
            assert (node.attribute[-1].name, node.attribute[-1].i) == ("TRT_decomposable", 1)
            del node.attribute[-1]
    assert model == before
    path.write_bytes(graphs.parts.read_bytes())
    assert not let_fall_apart(path)
