"""The flat graph gives the padded graph's logits, whatever the rows; its form for CUDA in the reference evaluator."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from support.graphs import checkpoint_of, onnx_logits, onnx_session
from support.tiny_families import write_tiny

from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity, served
from triton_rerank_export.gate.parity import BOUNDS
from triton_rerank_export.gate.served import EvaluatedOptions, EvaluatedSession, ServedScorer
from triton_rerank_export.graph import flat, trace
from triton_rerank_export.graph.precision import convert
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model, served_model
from triton_rerank_export.repository.manifest import read_manifest
from triton_rerank_export.repository.store import lay_out
from triton_rerank_export.repository.triton_config import Graph, Precision
from triton_rerank_server.backends.encoder.engine import Engine
from triton_rerank_server.backends.encoder.session import EngineError

Rectangle = dict[str, npt.NDArray[np.int64]]
CLASSES = (
    0,
    8,
    24,
    64,
    sys.maxsize,
)  # tiny models have 128 tokens: each class has rows in some batch, and none in others
PARITY = parity.load_parity_set()
BATCHES = {  # lengths of the rows of rectangles that are computed together
    "one row": [[7]],
    "one token": [[1], [1, 1, 1]],
    "full rows": [[128, 128], [64]],
    "ragged": [[5, 17, 32, 9], [7], [20, 3], [60]],
    "one long row among short ones": [[1, 2, 8, 128, 9], [24, 25]],
    "every class": [[3, 90], [64, 65, 8, 24, 1, 110]],
}

# onnxruntime's docs/OperatorKernels.md, CUDAExecutionProvider: types of the kernels of what a flat graph consists of
FLOATS, NUMBERS = frozenset({"float32", "float16"}), frozenset({"float32", "float16", "int32", "int64"})
ANY, LOGICAL = NUMBERS | {"bool"}, frozenset({"bool"})
CUDA = {
    **dict.fromkeys(
        ["Gather", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Concat", "Slice", "Split", "Cast"], ANY
    ),
    **dict.fromkeys(["Shape", "Where", "NonZero", "Equal", "Less"], ANY),
    **dict.fromkeys(["Add", "Sub", "Mul", "Div", "CumSum", "ReduceMax", "ReduceSum"], NUMBERS),
    **dict.fromkeys(["And", "Or", "Not"], LOGICAL),
    **dict.fromkeys(["Gemm", "LayerNormalization", "Erf", "Tanh"], FLOATS),
    "Range": frozenset({"float32", "int32", "int64"}),
    "PackedMultiHeadAttention": FLOATS | {"int32"},
}


class Graphs(NamedTuple):
    checkpoint: Checkpoint
    padded: Path
    classes: Path
    packed: Path
    fp16: Path


@pytest.fixture(scope="module", params=["tiny-bert", "tiny-xlmr", "ElectraForSequenceClassification"])
def graphs(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Graphs:
    work = tmp_path_factory.mktemp("flat")
    folder = checkpoints.get(request.param) or work / "checkpoint"
    if request.param not in checkpoints:
        write_tiny(request.param, folder)
    checkpoint = checkpoint_of(folder)
    padded = trace.export_graph(checkpoint, work / "padded", cut_last_layer=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "_CLASSES", CLASSES)
        classes = trace.export_flat_graph(checkpoint, work / "classes", packed=False)
    packed = trace.export_flat_graph(checkpoint, work / "packed", packed=True)
    fp16 = convert(packed, "fp16", work, family=checkpoint.family, half_residuals=True).path
    return Graphs(checkpoint, padded, classes, packed, fp16)


def rectangles(checkpoint: Checkpoint, batch: list[list[int]]) -> list[Rectangle]:
    """Rows as the tokenizer step pads them, to more than the longest of them."""
    return [_rectangle(checkpoint, lengths, seed) for seed, lengths in enumerate(batch)]


def _rectangle(checkpoint: Checkpoint, lengths: list[int], seed: int) -> Rectangle:
    width = next(rung for rung in (32, 64, 128) if rung >= max(lengths))
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, np.random.default_rng(seed).integers(5, 600, mask.shape), checkpoint.pad_token_id)
    segments = {"token_type_ids": mask * (np.arange(width) > 4)} if checkpoint.token_type_ids else {}
    return {"input_ids": ids, "attention_mask": mask, **segments}


def as_triton_flattens(given: list[Rectangle]) -> dict[str, npt.NDArray[Any]]:
    """Padding included: BATCH_ITEM_SHAPE_FLATTEN gives every row's padded width."""
    widths = [np.full(len(one["input_ids"]), one["input_ids"].shape[1], np.int32) for one in given]
    return {name: np.concatenate([one[name].ravel() for one in given]) for name in given[0]} | {
        "widths": np.concatenate(widths)
    }


def largest(got: list[npt.NDArray[np.float32]], expected: list[npt.NDArray[np.float32]]) -> float:
    assert [logits.shape for logits in got] == [logits.shape for logits in expected]
    return float(np.abs(np.concatenate(got) - np.concatenate(expected)).max())


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_form_for_cpus_gives_the_padded_graphs_logits(graphs: Graphs, batch: list[list[int]]) -> None:
    given = rectangles(graphs.checkpoint, batch)
    expected = onnx_logits(graphs.padded, given)
    session = onnx_session(str(graphs.classes))
    merged = session.run(["logits"], as_triton_flattens(given))[0]
    assert largest([merged], [np.concatenate(expected)]) < 1e-5
    assert largest(Engine(graphs.classes).logits(given), expected) < 1e-5


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_form_for_cuda_gives_the_padded_graphs_logits(graphs: Graphs, batch: list[list[int]]) -> None:
    given = rectangles(graphs.checkpoint, batch)
    expected = onnx_logits(graphs.padded, given)
    merged = EvaluatedSession(str(graphs.packed)).run(as_triton_flattens(given))
    assert largest([merged], [np.concatenate(expected)]) < 1e-5
    assert largest(Engine(graphs.packed, EvaluatedOptions()).logits(given), expected) < 1e-5
    assert (
        largest(Engine(graphs.fp16, EvaluatedOptions()).logits(given), expected) < BOUNDS["fp16"].max_logit_difference
    )


@pytest.mark.parametrize("form", ["classes", "packed"])
def test_the_paddings_id_inside_a_text_and_a_row_of_nothing_but_padding(graphs: Graphs, form: str) -> None:
    """RoBERTa gives the padding's id no position of its own wherever it stands."""
    (given,) = rectangles(graphs.checkpoint, [[20, 9, 12]])
    given["input_ids"][0, 3:5] = graphs.checkpoint.pad_token_id
    given["attention_mask"][1] = 0
    engine = Engine(getattr(graphs, form), EvaluatedOptions() if form == "packed" else None)
    (got,), (expected,) = engine.logits([given]), onnx_logits(graphs.padded, [given])
    assert largest([got[[0, 2]]], [expected[[0, 2]]]) < 1e-5
    assert np.isfinite(got).all()


def _int8_weights(path: Path) -> list[tuple[tuple[int, ...], bytes]]:
    weights = [w for w in onnx.load(path).graph.initializer if w.data_type == onnx.TensorProto.INT8 and w.dims]
    return sorted((tuple(w.dims), numpy_helper.to_array(w).tobytes()) for w in weights)


def test_int8_has_the_weights_of_a_padded_graphs_and_its_logits(graphs: Graphs, tmp_path: Path) -> None:
    """Of a Gemm too: tables, head, and the second feed-forward matrix of the first third of the layers stay fp32."""
    family = graphs.checkpoint.family
    int8 = convert(graphs.classes, "int8", tmp_path / "flat", family=family).path
    padded = convert(graphs.padded, "int8", tmp_path / "padded", family=family).path
    matrices = [weight for weight in _int8_weights(int8) if len(weight[0]) == 2]
    assert _int8_weights(int8) == _int8_weights(padded)
    assert len(matrices) >= 11  # six a layer but the one that is kept
    given = [one for batch in BATCHES.values() for one in rectangles(graphs.checkpoint, batch)]
    got, expected = Engine(int8).logits(given), onnx_logits(graphs.padded, given)
    assert 0 < largest(got, expected) < 0.1


def test_inputs_are_flat_as_native_backends_want_ragged_ones(graphs: Graphs) -> None:
    for path in (graphs.classes, graphs.packed, graphs.fp16):
        inputs = {value.name: value.type.tensor_type for value in onnx.load(path).graph.input}
        assert {name: len(tensor.shape.dim) for name, tensor in inputs.items()} == dict.fromkeys(inputs, 1)
        types = {name: onnx.TensorProto.DataType.Name(tensor.elem_type) for name, tensor in inputs.items()}
        assert types.pop("widths") == "INT32"
        assert set(types.values()) == {"INT64"}


def test_every_operator_for_cuda_has_a_kernel_there_and_no_cast_stands_between_residuals(graphs: Graphs) -> None:
    model = onnx.load(graphs.fp16)
    feed = as_triton_flattens(rectangles(graphs.checkpoint, BATCHES["ragged"]))
    tensors = EvaluatedSession(str(graphs.fp16)).tensors(feed)
    types = {name: str(value.dtype) for name, value in tensors.items() if name}
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]  # folded before it is given to a device
    for node in nodes:
        assert {types[name] for name in (*node.input, *node.output) if name} <= CUDA[node.op_type], node.name
    norms = [node for node in nodes if node.op_type == "LayerNormalization"]
    assert {types[name] for node in norms for name in (*node.input, *node.output)} == {"float16"}
    casts = [node for node in nodes if node.op_type == "Cast" and types[node.output[0]].startswith("float")]
    assert [node.input[0] for node in casts] == [norms[-1].output[0]]  # before the head
    assert types["logits"] == "float32"


def test_no_operator_makes_a_rectangle_of_all_rows_for_attention(graphs: Graphs) -> None:
    """One long row among many short ones: what is quadratic in the longest stays with its class."""
    given = rectangles(graphs.checkpoint, [[1] * 40, [128]])
    model = onnx.load(graphs.classes)
    attention = [node for node in model.graph.node if node.op_type == "MultiHeadAttention"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for node in attention for name in node.output)
    shapes = [array.shape for array in onnx_session(model.SerializeToString()).run(None, as_triton_flattens(given))[1:]]
    rows = [shape[:2] for shape in shapes]
    none = (1, 1)  # a stand-in: ONNX Runtime 1.23 dies of attention over no row
    assert rows == [(40, 1), none, none, (1, 128), (40, 1), none, none, (1, 1)]


def test_the_evaluator_refuses_places_that_do_not_belong_to_the_rows() -> None:
    from triton_rerank_export.gate.served import check_places

    check_places(np.array([[0, 1], [2, 3]]), np.array([0, 2, 3]), 3)
    with pytest.raises(ValueError, match="does not belong to rows of"):
        check_places(np.array([[0, 2], [1, 3]]), np.array([0, 2, 3]), 3)


def test_a_new_version_keeps_the_form_and_a_replacement_has_the_default(checkpoints: dict[str, Path]) -> None:
    checkpoint = checkpoint_of(checkpoints["tiny-bert"])
    beside = served_model(checkpoint, ExportOptions(precision="fp32", graph="flat"))
    assert beside.graph == "flat"
    assert served_model(checkpoint, ExportOptions(precision="fp32"), beside).graph == "flat"
    assert served_model(checkpoint, ExportOptions(precision="fp32", graph="padded"), beside).graph == "padded"
    assert served_model(checkpoint, ExportOptions(precision="fp32")).graph == "padded"


def test_what_the_native_backend_serves_is_flat_where_it_can_be(checkpoints: dict[str, Path]) -> None:
    checkpoint = checkpoint_of(checkpoints["tiny-bert"])
    precisions: list[Precision] = ["fp32", "int8", "fp16"]
    for precision in precisions:
        assert served_model(checkpoint, ExportOptions(precision=precision, native=True)).graph == "flat"
    assert served_model(checkpoint, ExportOptions(native=True, graph="padded")).graph == "padded"
    in_tensorrt = ExportOptions(precision="fp16", native=True, accelerator="tensorrt")
    assert served_model(checkpoint, in_tensorrt).graph == "padded"


def test_what_is_for_gpus_has_two_tokenizers_wherever_it_is_exported(checkpoints: dict[str, Path]) -> None:
    checkpoint = checkpoint_of(checkpoints["tiny-bert"])
    precisions: dict[Precision, int] = {"fp16": 2, "fp32": 1, "int8": 1, "bf16": 1}
    for precision, count in precisions.items():
        model = served_model(checkpoint, ExportOptions(precision=precision))
        assert model.configs()[model.tokenizer_name].instance_group[0].count == count
    model = served_model(checkpoint, ExportOptions(precision="fp16", tokenizers=5))
    assert model.configs()[model.tokenizer_name].instance_group[0].count == 5


def test_a_family_with_other_attention_is_refused_with_those_that_have_a_flat_graph() -> None:
    from triton_rerank_export.checkpoint.families import FAMILIES, check_form

    check_form(FAMILIES["BertForSequenceClassification"], "fp32", flat=True)
    with pytest.raises(ExportError, match="has no flat graph; BertForSequenceClassification, XLMRoberta"):
        check_form(FAMILIES["DistilBertForSequenceClassification"], "fp32", flat=True)


def _with_large_residuals(source: Path, folder: Path, size: float) -> Path:
    """A residual of ``size`` in two of a token's numbers where layers add, half of it from either side.

    What the last layer makes of its tokens is as before: no product reads the two, and its layer norm undoes what they
    do to the others.
    """
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    width, half = weights["bert.pooler.dense.bias"].shape[0], torch.tensor([size / 2, -size / 2])
    layer = "bert.encoder.layer.1.attention"
    weights["bert.encoder.layer.0.output.LayerNorm.bias"][:2] = half
    weights["bert.encoder.layer.0.output.LayerNorm.weight"][:2] = 0
    for name in ("query", "key", "value"):
        weights[f"{layer}.self.{name}.weight"][:, :2] = 0
    weights[f"{layer}.output.dense.weight"][:2] = 0
    weights[f"{layer}.output.dense.bias"][:2] = half
    weights[f"{layer}.output.LayerNorm.weight"][:] = size * (2 / width) ** 0.5
    weights[f"{layer}.output.LayerNorm.weight"][:2] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("size", "in_fp32"),
    [
        (100.0, False),
        (8e4, True),  # passes fp16's range, though neither of what is added does
    ],
)
def test_residuals_that_fp16_cannot_hold_are_fp32_and_that_is_told(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float, in_fp32: bool
) -> None:
    monkeypatch.setattr(parity, "load_parity_set", lambda: PARITY[:3])
    folder, steps = _with_large_residuals(checkpoints["tiny-bert"], tmp_path / "large", size), list[str]()
    options = ExportOptions(precision="fp16", graph="flat")
    result = export_model(str(folder), tmp_path / "r", options, on_step=steps.append)
    assert result.report.max_logit_difference <= BOUNDS["fp16"].max_logit_difference
    path = tmp_path / "r" / "large-encoder" / "1" / "model.onnx"
    tensors = EvaluatedSession(str(path)).tensors(
        as_triton_flattens(rectangles(checkpoint_of(folder), BATCHES["ragged"]))
    )
    norms = [node for node in onnx.load(path).graph.node if node.op_type == "LayerNormalization"]
    assert {str(tensors[norm.input[0]].dtype) for norm in norms} == {"float32" if in_fp32 else "float16"}
    told = [note for note in result.manifest.notes if "(residuals) is fp32: in fp16 the largest logit" in note]
    assert len(told) == in_fp32
    assert read_manifest(tmp_path / "r" / "large" / "1" / "manifest.json").notes == result.manifest.notes
    assert len([step for step in steps if "once more, with fp32 there" in step]) == in_fp32


@pytest.mark.parametrize("fp32_residuals", [False, True])
def test_a_padded_graph_for_cuda_has_no_casts_between_layers_either(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp32_residuals: bool
) -> None:
    """Its layer norms add inside, in fp32 on a CPU and in the strict mode of CUDA: a large sum does not overflow."""
    monkeypatch.setattr(parity, "load_parity_set", lambda: PARITY[:3])
    folder = _with_large_residuals(checkpoints["tiny-bert"], tmp_path / "large", 8e4)
    options = ExportOptions(precision="fp16", fp32_residuals=fp32_residuals)
    result = export_model(str(folder), tmp_path / "r", options, on_step=lambda _: None)
    graph = onnx.load(tmp_path / "r" / "large-encoder" / "1" / "model.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    norms = [node for node in graph.node if node.op_type == "SkipLayerNormalization"]
    wanted = onnx.TensorProto.FLOAT if fp32_residuals else onnx.TensorProto.FLOAT16
    assert {types[node.input[2]] for node in norms} == {wanted}
    made = {node.output[0] for node in norms}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in made]
    assert bool(len(casts) > 1) == fp32_residuals  # one stands before the head
    config = result.manifest.model.configs()["large-encoder"]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(accelerator.parameters) == {"enable_skip_layer_norm_strict_mode": "1"}


def test_residuals_are_fp32_where_that_is_asked_for(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "load_parity_set", lambda: PARITY[:3])
    options = ExportOptions(precision="fp16", graph="flat", fp32_residuals=True)
    result = export_model(str(checkpoints["tiny-bert"]), tmp_path / "r", options, on_step=lambda _: None)
    path = tmp_path / "r" / "tiny-bert-encoder" / "1" / "model.onnx"
    given = as_triton_flattens(rectangles(checkpoint_of(checkpoints["tiny-bert"]), BATCHES["ragged"]))
    tensors = EvaluatedSession(str(path)).tensors(given)
    norms = [node for node in onnx.load(path).graph.node if node.op_type == "LayerNormalization"]
    assert {str(tensors[norm.input[0]].dtype) for norm in norms} == {"float32"}
    assert "What passes from layer to layer (residuals) is fp32, as was asked for." in result.manifest.notes


@pytest.mark.parametrize("graph", ["padded", "flat"])
def test_a_graph_that_disagrees_in_fp32_too_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: Graph
) -> None:
    monkeypatch.setattr(parity, "load_parity_set", lambda: PARITY[:3])
    monkeypatch.setitem(BOUNDS, "fp16", parity.Bounds(1e-9, 0.99, 1.0))
    options, steps = ExportOptions(precision="fp16", graph=graph), list[str]()
    with pytest.raises(ExportError, match="the fp16 export does not agree with PyTorch"):
        export_model(str(checkpoints["tiny-bert"]), tmp_path / "r", options, on_step=steps.append)
    assert len([step for step in steps if "once more, with fp32 there" in step]) == 1
    assert not (tmp_path / "r" / "tiny-bert").exists()


def test_on_a_gpu_the_gate_computes_with_the_providers_options_that_are_served(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = served_model(graphs.checkpoint, ExportOptions(precision="fp16", graph="flat"))
    lay_out(tmp_path, model, graphs.checkpoint.folder / "tokenizer.json", [Path(shutil.copy(graphs.fp16, tmp_path))])
    (accelerator,) = model.configs()[model.encoder_name].optimization.execution_accelerators.gpu_execution_accelerator
    opened: list[Any] = []

    def refuse(_: str, __: Any, providers: list[Any]) -> Any:
        opened.extend(providers)
        raise RuntimeError("no GPU")

    monkeypatch.setattr(served, "cuda_available", lambda: True)
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(EngineError, match="no GPU"):
        ServedScorer(tmp_path, model).logits("q", ["d"])
    assert opened[0] == ("CUDAExecutionProvider", {**accelerator.parameters, "device_id": "0"})
    assert opened[0][1]["enable_skip_layer_norm_strict_mode"] == "1"
