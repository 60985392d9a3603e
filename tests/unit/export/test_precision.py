"""What is served in fp32, fp16 and int8: agreement with PyTorch, types, weights that do not fit, files."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.graphs import (
    batches,
    digests,
    export_stages,
    largest_difference,
    onnx_logits,
    tensor_types,
    with_weight,
)

from triton_rerank_export.checkpoint.families import FAMILIES
from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.graph import graph_file, trace
from triton_rerank_export.graph.precision import Converted
from triton_rerank_export.graph.precision import convert as convert_family
from triton_rerank_export.repository.triton_config import Precision

Stages = tuple[Checkpoint, dict[str, Path]]
convert = functools.partial(convert_family, family=FAMILIES["BertForSequenceClassification"])  # XLM-R has its names
LAYER_NORMS = {"LayerNormalization", "SkipLayerNormalization"}

# form, precision, largest difference of a logit to PyTorch's
SERVED: list[tuple[str, Precision, float]] = [
    ("cut", "fp32", 1e-5),
    ("traced", "fp32", 1e-5),
    ("fused", "fp16", 2e-3),
    ("cut", "fp16", 2e-3),
    ("traced", "fp16", 2e-3),
    ("cut", "int8", 0.1),
    ("cut", "bf16", 2e-4),  # the file is as the fp32 one; OpenVINO rounds when it loads
]


@pytest.fixture(scope="module", params=["tiny-bert", "tiny-xlmr"])
def stages(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Stages:
    return export_stages(checkpoints[request.param], tmp_path_factory.mktemp("stages"))


Serve = Callable[[str, Precision], Converted]


@pytest.fixture(scope="module")
def serve(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """A form of the graph in a precision, converted once."""
    return functools.cache(
        lambda form, precision: convert(stages[1][form], precision, tmp_path_factory.mktemp("served"))
    )


def test_every_precision_is_tested() -> None:
    assert {precision for _, precision, _ in SERVED} == set(get_args(Precision))


@pytest.mark.parametrize(("form", "precision", "bound"), SERVED)
def test_logits_are_float32_and_agree_with_pytorch(
    stages: Stages, serve: Serve, form: str, precision: Precision, bound: float
) -> None:
    checkpoint, _ = stages
    converted = serve(form, precision)
    assert converted.path.parent.name == precision
    assert converted.notes == ()
    assert largest_difference(converted.path, checkpoint) < bound
    assert {logits.dtype for logits in onnx_logits(converted.path, batches(checkpoint))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("form", "precision"), [row[:2] for row in SERVED])
def test_a_row_of_nothing_but_padding_is_finite(stages: Stages, serve: Serve, form: str, precision: Precision) -> None:
    batch = batches(stages[0])[2]
    batch["attention_mask"][1] = 0
    (logits,) = onnx_logits(serve(form, precision).path, [batch])
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(("form", "precision"), [row[:2] for row in SERVED])
def test_converting_twice_gives_the_same_bytes(
    stages: Stages, serve: Serve, tmp_path: Path, form: str, precision: Precision
) -> None:
    again = convert(stages[1][form], precision, tmp_path).path
    assert digests(again.parent) == digests(serve(form, precision).path.parent)


@pytest.mark.parametrize(("form", "precision"), [row[:2] for row in SERVED])
def test_large_weights_lie_in_a_second_file(
    stages: Stages, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, precision: Precision
) -> None:
    whole = serve(form, precision).path
    assert [path.name for path in trace.graph_files(whole)] == ["model.onnx"]
    monkeypatch.setattr(graph_file, "EXTERNAL_ABOVE", 0)
    split = convert(stages[1][form], precision, tmp_path).path
    assert [path.name for path in trace.graph_files(split)] == ["model.onnx", "model.onnx.data"]
    assert split.stat().st_size < whole.stat().st_size / 2
    if form == "traced":
        onnx.checker.check_model(str(split), full_check=True)
    inputs = batches(stages[0])
    for got, expected in zip(onnx_logits(split, inputs), onnx_logits(whole, inputs), strict=True):
        np.testing.assert_array_equal(got, expected)


# --- fp16: types --------------------------------------------------------------------------------------------------


def float_types(node: onnx.NodeProto, types: dict[str, str]) -> set[str]:
    names = [*node.input, *node.output]
    return {types[name] for name in names if types.get(name, "").startswith("float")}


@pytest.mark.parametrize("form", ["traced", "cut", "fused"])
def test_sums_and_head_are_fp32_and_matrix_products_fp16(serve: Serve, form: str) -> None:
    path = serve(form, "fp16").path
    types, nodes = tensor_types(path), onnx.load(path).graph.node
    sums = [node for node in nodes if node.op_type in LAYER_NORMS | {"Softmax"}]
    head = [node for node in nodes if node.op_type in {"Gemm", "Tanh"}]
    products = [node for node in nodes if node.op_type in {"MatMul", "Attention", "BiasGelu", "Erf"}]
    assert (len(sums), len(head)) == (5 if form == "fused" else 7, 3)
    assert len(products) >= 10
    for node in sums + head:
        assert float_types(node, types) == {"float"}, node.name
    for node in products:
        assert float_types(node, types) == {"float16"}, node.name
    assert types["logits"] == "float"


@pytest.mark.parametrize("form", ["traced", "cut", "fused"])
def test_tables_are_fp16_and_the_residual_stream_and_the_mask_fp32(serve: Serve, form: str) -> None:
    path = serve(form, "fp16").path
    types, nodes = tensor_types(path), onnx.load(path).graph.node
    assert {types[name] for name in types if name.endswith("_embeddings.weight")} == {"float16"}
    makers = {output: node for node in nodes for output in node.output}
    for node in nodes:
        if node.op_type in {"LayerNormalization", "Softmax"}:  # what it sums was added in fp32
            assert float_types(makers[node.input[0]], types) == {"float"}, node.name
    biased = [node for node in nodes if node.op_type == "Add" and node.name.endswith(("/dense/Add", "/query/Add"))]
    assert len(biased) == (0 if form == "fused" else 8)
    for node in biased:  # with its matrix product, in one kernel
        assert float_types(node, types) == {"float16"}, node.name
    weights = onnx.load(path).graph.initializer
    assert all(np.isfinite(numpy_helper.to_array(weight)).all() for weight in weights)  # the mask's too


def test_the_standard_form_is_strongly_typed(serve: Serve) -> None:
    """TensorRT takes every type from the graph: standard operators, and types that follow from the inputs alone."""
    model = onnx.load(serve("cut", "fp16").path)
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    typed = {value.name for value in inferred.graph.value_info} | {"logits"}
    assert {output for node in model.graph.node for output in node.output} <= typed


def test_no_cast_is_undone_by_the_next(serve: Serve) -> None:
    for form in ("cut", "fused"):
        nodes = onnx.load(serve(form, "fp16").path).graph.node
        casts = {node.output[0] for node in nodes if node.op_type == "Cast" and node.name.endswith(("_fp16", "_fp32"))}
        assert casts
        assert not [node.name for node in nodes if node.op_type == "Cast" and node.input[0] in casts]


# --- fp16: weights that do not fit ---------------------------------------------------------------------------------


def put(value: float) -> Callable[[torch.Tensor], Any]:
    return lambda weight: weight.view(-1)[:3].fill_(value)


@pytest.mark.parametrize(
    ("weight", "named"),
    [
        ("layer.0.output.dense.weight", "/layer.0/output/dense/MatMul"),
        ("layer.0.intermediate.dense.bias", "layer.0.intermediate.dense.bias of"),
        (
            "layer.1.attention.self.value.weight",
            "/layer.1/attention/self/value/MatMul|Attention_1_qkv_weight of Attention_1",
        ),
        ("word_embeddings.weight", "/embeddings/word_embeddings/Gather"),
    ],
)
def test_a_weight_that_does_not_fit_stays_fp32_and_is_named(
    checkpoints: dict[str, Path], tmp_path: Path, weight: str, named: str
) -> None:
    folder = with_weight(checkpoints["tiny-bert"], tmp_path / "tiny-bert", weight, put(1e5))
    checkpoint, paths = export_stages(folder, tmp_path)
    for form in ("cut", "fused"):
        converted = convert(paths[form], "fp16", tmp_path / form)
        (note,) = converted.notes
        assert "do not fit fp16, whose largest number is 65504, stay fp32" in note
        assert re.search(named, note)
        assert "(largest 1e+05)" in note
        assert largest_difference(converted.path, checkpoint) < 1e-2


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -65520.0])
def test_what_is_no_fp16_number_is_never_written_as_another(
    checkpoints: dict[str, Path], tmp_path: Path, value: float
) -> None:
    folder = with_weight(checkpoints["tiny-xlmr"], tmp_path / "tiny-xlmr", "layer.0.output.dense.weight", put(value))
    _, paths = export_stages(folder, tmp_path)
    converted = convert(paths["traced"], "fp16", tmp_path)
    assert len(converted.notes) == 1
    weights = onnx.load(converted.path).graph.initializer
    (kept,) = [w for w in weights if list(w.dims) == [64, 32] and w.data_type == onnx.TensorProto.FLOAT]
    np.testing.assert_array_equal(numpy_helper.to_array(kept)[0, 0], np.float32(value))


def test_the_largest_fp16_number_fits(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = with_weight(checkpoints["tiny-bert"], tmp_path / "tiny-bert", "word_embeddings.weight", put(65504.0))
    _, paths = export_stages(folder, tmp_path)
    assert convert(paths["traced"], "fp16", tmp_path).notes == ()


def test_many_weights_that_become_zero_are_counted(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def shrink(weight: torch.Tensor) -> None:
        weight[:10] = 1e-8

    folder = with_weight(checkpoints["tiny-bert"], tmp_path / "tiny-bert", "layer.0.output.dense.weight", shrink)
    _, paths = export_stages(folder, tmp_path)
    (note,) = convert(paths["traced"], "fp16", tmp_path).notes
    assert note.startswith("640 of ")
    assert note.endswith("are too small for fp16 and become 0")


def test_an_operator_that_is_not_known_is_refused(stages: Stages, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    model = onnx.load(stages[1]["traced"])
    (erf, *_) = [node for node in model.graph.node if node.op_type == "Erf"]
    erf.op_type = "Softplus"
    onnx.save(model, source)
    with pytest.raises(ExportError, match=r"operator Softplus \(/.*Erf\): the conversion to fp16 does not know it"):
        convert(source, "fp16", tmp_path)


def test_a_weight_of_fp16_and_fp32_operators_is_kept_in_both(serve: Serve) -> None:
    """In a new model all biases are zeros, and the exporter makes them one: a product's and a layer norm's."""
    types = tensor_types(serve("traced", "fp16").path)
    both = [name for name in types if f"{name}_fp16" in types and name.endswith("LayerNorm.bias")]
    assert len(both) == 1
    assert (types[both[0]], types[f"{both[0]}_fp16"]) == ("float", "float16")


# --- int8 -----------------------------------------------------------------------------------------------------------


def int8_weights(path: Path) -> list[np.ndarray[Any, Any]]:
    weights = onnx.load(path).graph.initializer
    return [numpy_helper.to_array(w) for w in weights if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2]


def test_int8_keeps_tables_the_first_thirds_feed_forward_outputs_and_the_head(serve: Serve) -> None:
    model = onnx.load(serve("cut", "int8").path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    tables = [name for name in types if name.endswith("_embeddings.weight")]
    assert len(tables) == 3
    assert {types[name] for name in tables} == {onnx.TensorProto.FLOAT}
    weights = set(types)
    products = [node for node in model.graph.node if node.op_type in {"MatMul", "MatMulInteger"}]
    early, *head = [node for node in products if node.op_type == "MatMul" and node.input[1] in weights]
    assert early.name.endswith("/layer.0/output/dense/MatMul")
    assert len(head) == 2  # pooler or dense, and the classifier
    integer = [node for node in products if node.op_type == "MatMulInteger"]
    assert len(integer) == 11  # six a layer but the one that is kept


def test_int8_has_a_scale_for_each_channel(serve: Serve) -> None:
    weights = {tensor.name: tensor for tensor in onnx.load(serve("cut", "int8").path).graph.initializer}
    quantised = [name for name in weights if name.endswith("_quantized") and weights[name].dims[-1] > 1]
    assert len(quantised) == 11  # six a layer but the one that is kept
    for name in quantised:
        assert weights[name.removesuffix("_quantized") + "_scale"].dims[-1:] == weights[name].dims[-1:], name


def test_reduce_range_leaves_a_bit_free(stages: Stages, serve: Serve, tmp_path: Path) -> None:
    checkpoint, paths = stages
    whole = int8_weights(serve("cut", "int8").path)
    reduced = convert(paths["cut"], "int8", tmp_path, reduce_range=True)
    assert max(np.abs(w.astype(int)).max() for w in whole) == 127
    assert max(np.abs(w.astype(int)).max() for w in int8_weights(reduced.path)) == 64
    assert largest_difference(reduced.path, checkpoint) < 0.2


def test_the_source_is_not_changed(stages: Stages, tmp_path: Path) -> None:
    before = digests(stages[1]["cut"].parent)
    for precision in get_args(Precision):
        convert(stages[1]["cut"], precision, tmp_path)
    assert digests(stages[1]["cut"].parent) == before
