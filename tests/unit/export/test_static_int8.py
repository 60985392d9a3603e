"""int8 whose scales are measured before: what is quantised, agreement, ranges, edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.graphs import (
    batches,
    checkpoint_of,
    digests,
    export_stages,
    largest_difference,
    onnx_logits,
    onnx_session,
    with_weight,
)

from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.graph import graph_file, static_int8, trace
from triton_rerank_export.graph.precision import convert
from triton_rerank_export.graph.static_int8 import Feed, calibration_feeds
from triton_rerank_export.repository.triton_config import encoder_inputs, length_ladder
from triton_rerank_server.backends.encoder.engine import Engine
from triton_rerank_server.backends.encoder.openvino_session import OpenVinoOptions
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

INT8, FLOAT = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT

Stage = tuple[Checkpoint, Path]


@pytest.fixture(scope="module", params=["tiny-bert", "tiny-xlmr"])
def stage(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Stage:
    checkpoint, paths = export_stages(checkpoints[request.param], tmp_path_factory.mktemp("stages"))
    return checkpoint, paths["cut"]


@pytest.fixture(scope="module")
def feeds(stage: Stage) -> list[Feed]:
    checkpoint, _ = stage
    tokenizer = PairTokenizer(
        checkpoint.folder / "tokenizer.json",
        max_length=checkpoint.max_length,
        length_ladder=length_ladder(checkpoint.max_length),
        pad_token_id=checkpoint.pad_token_id,
    )
    return list(calibration_feeds(tokenizer, encoder_inputs(token_type_ids=checkpoint.token_type_ids)))


@pytest.fixture(scope="module")
def static(stage: Stage, feeds: list[Feed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(stage[1], "int8", tmp_path_factory.mktemp("static"), family=stage[0].family, feeds=feeds).path


def cut_graph(folder: Path, work: Path) -> Path:
    return trace.export_graph(checkpoint_of(folder), work / "graph", cut_last_layer=True)


def weights(path: Path, data_type: int) -> dict[str, npt.NDArray[Any]]:
    tensors = onnx.load(path).graph.initializer
    return {each.name: numpy_helper.to_array(each) for each in tensors if each.data_type == data_type}


def test_logits_agree_with_pytorch_in_both_libraries(stage: Stage, static: Path) -> None:
    checkpoint, _ = stage
    assert (
        largest_difference(static, checkpoint) < 0.3
    )  # random weights and ids; the gate holds real ones to their order
    inputs = batches(checkpoint)
    engine = Engine(static, OpenVinoOptions(inference_num_threads=1))
    for batch, expected in zip(inputs, onnx_logits(static, inputs), strict=True):
        np.testing.assert_allclose(engine.logits([batch])[0], expected, atol=0.05)  # a rounding may fall otherwise


def test_every_product_with_a_weight_is_int8_and_nothing_else_is(stage: Stage, static: Path) -> None:
    model = onnx.load(static)
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1].endswith("_quantised")]
    assert len(products) == 12  # six a layer
    for product in products:
        assert [makers[name].op_type for name in product.input] == ["DequantizeLinear", "DequantizeLinear"]
        assert tensors[makers[product.input[1]].input[0]] == INT8
    assert sum(data_type == INT8 for data_type in tensors.values()) == 12
    assert {tensors[name] for name in tensors if name.endswith("_embeddings.weight")} == {FLOAT}
    # query, key and value read one tensor; the last layer's query that of the first token
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 9
    onnx.checker.check_model(model, full_check=True)


def test_a_pairs_logit_does_not_depend_on_its_neighbours(stage: Stage, static: Path) -> None:
    """Dynamic int8 takes the range of all pairs together."""
    engine = Engine(static, OpenVinoOptions(inference_num_threads=1))
    batch = batches(stage[0])[2]
    together = engine.logits([batch])[0]
    alone = [engine.logits([{name: array[row : row + 1] for name, array in batch.items()}])[0] for row in range(2)]
    np.testing.assert_allclose(np.concatenate(alone), together[:2], atol=1e-5)


def test_ranges_are_those_of_the_activations(stage: Stage, feeds: list[Feed]) -> None:
    _, path = stage
    ranges = static_int8.measure(path, feeds)
    name = next(
        name for name in ranges if name.endswith("layer.0/attention/output/LayerNorm/LayerNormalization_output_0")
    )
    model = onnx.load(path)
    model.graph.output.add(name=name)
    session = onnx_session(model.SerializeToString())
    values = np.concatenate([session.run([name], feed)[0][0] for feed in feeds])  # (tokens, k)
    np.testing.assert_allclose(ranges[name].low, values.min(axis=0), atol=1e-5)
    np.testing.assert_allclose(ranges[name].high, values.max(axis=0), atol=1e-5)
    assert [each.name for each in path.parent.iterdir() if each.name.startswith("watched")] == []


def test_an_outlying_channel_does_not_cost_the_others_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel is a hundred times as large as the others, and its weights as small: what BERT's layer norms do."""
    numbers = np.random.default_rng(0)
    sizes = np.where(np.arange(16) == 3, 100, 1).astype(np.float32)
    inputs = numbers.normal(size=(1, 200, 16)).astype(np.float32) * sizes
    matrix = numbers.normal(size=(16, 8)).astype(np.float32) / sizes[:, None]
    path = tmp_path / "model.onnx"
    x, y = (helper.make_tensor_value_info(name, FLOAT, ("n", "tokens", None)) for name in "xy")
    product = helper.make_node("MatMul", ["x", "matrix"], ["y"], name="product")
    body = helper.make_graph([product], "g", [x], [y], [numpy_helper.from_array(matrix, "matrix")])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    ranges = static_int8.measure(path, [{"x": inputs}])  # type: ignore[dict-item]

    def error() -> float:
        model = onnx.load(path)
        static_int8.quantise(model, numpy_helper.to_array, ranges, reduce_range=False)
        session = onnx_session(model.SerializeToString(), exact=True)
        return float(np.abs(session.run(["y"], {"x": inputs})[0] - inputs @ matrix).max())

    smoothed = error()
    monkeypatch.setattr(static_int8, "_smoothing", lambda seen, _: np.ones_like(seen.low))
    assert smoothed < 0.2
    assert error() > 10 * smoothed


def test_channels_and_weights_of_nothing_but_zero_are_finite(stage: Stage, feeds: list[Feed], tmp_path: Path) -> None:
    folder = stage[0].folder
    for name in (
        "layer.0.attention.output.LayerNorm.weight",
        "layer.0.attention.output.LayerNorm.bias",
        "layer.1.intermediate.dense.weight",
    ):
        folder = with_weight(folder, tmp_path / name, name, torch.Tensor.zero_)
    source = cut_graph(folder, tmp_path)
    inputs = batches(stage[0])
    got = onnx_logits(convert(source, "int8", tmp_path, family=stage[0].family, feeds=feeds).path, inputs)
    for logits, expected in zip(got, onnx_logits(source, inputs), strict=True):
        np.testing.assert_allclose(logits, expected, atol=0.15)


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 63)])
def test_reduce_range_leaves_a_bit_free(
    stage: Stage, feeds: list[Feed], tmp_path: Path, reduce_range: bool, largest: int
) -> None:
    converted = convert(stage[1], "int8", tmp_path, family=stage[0].family, reduce_range=reduce_range, feeds=feeds)
    assert max(np.abs(weight.astype(int)).max() for weight in weights(converted.path, INT8).values()) == largest
    assert largest_difference(converted.path, stage[0]) < 0.3


def test_converting_twice_gives_the_same_bytes_and_leaves_the_source(
    stage: Stage, feeds: list[Feed], static: Path, tmp_path: Path
) -> None:
    before = digests(stage[1].parent)
    again = convert(stage[1], "int8", tmp_path, family=stage[0].family, feeds=feeds).path
    assert digests(again.parent) == digests(static.parent)
    assert digests(stage[1].parent) == before


def test_large_weights_lie_in_a_second_file(
    stage: Stage, feeds: list[Feed], static: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_file, "EXTERNAL_ABOVE", 0)
    split = convert(stage[1], "int8", tmp_path, family=stage[0].family, feeds=feeds).path
    assert [path.name for path in trace.graph_files(split)] == ["model.onnx", "model.onnx.data"]
    inputs = batches(stage[0])
    for got, expected in zip(onnx_logits(split, inputs), onnx_logits(static, inputs), strict=True):
        np.testing.assert_array_equal(got, expected)
    engine = Engine(split, OpenVinoOptions(inference_num_threads=1))
    np.testing.assert_allclose(engine.logits([inputs[0]])[0], onnx_logits(static, inputs)[0], atol=0.05)
