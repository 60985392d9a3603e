"""Every row of the table of families: exported in each of its precisions, held to its checkpoint, and able to fail."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from support.graphs import batches, largest_difference, onnx_logits, tensor_types, with_weight
from support.tiny_families import TINY, write_head, write_tiny
from transformers import AutoModel, AutoModelForSequenceClassification

from triton_rerank_export.checkpoint.families import FAMILIES
from triton_rerank_export.checkpoint.resolve import Checkpoint, read_checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity, reference
from triton_rerank_export.gate.gate import run_gate
from triton_rerank_export.graph import trace
from triton_rerank_export.graph.precision import convert
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import ExportResult, export_model, served_model
from triton_rerank_export.repository.triton_config import PRECISIONS
from triton_rerank_server.backends.encoder.onnxruntime_session import int8_saturates

ELSEWHERE = tuple(
    f"{kind}ForSequenceClassification" for kind in ("Bert", "XLMRoberta", "Roberta")
)  # in tests of their own
NAMES = [name for name in FAMILIES if name not in ELSEWHERE]
OTHERS = [(name, precision) for name in NAMES for precision in FAMILIES[name].precisions if precision != "fp32"]
OTHERS = [
    (name, precision) for name, precision in OTHERS if not name.startswith("Qwen2")
]  # as Qwen3, but for its norms
STANDARD_FP16 = [name for name in NAMES if "fp16" in FAMILIES[name].precisions and FAMILIES[name].fusion is None]
FULL = {"LayerNormalization", "Softmax", "Where", "Sin", "Cos", "ReduceSum", "Gemm", "Relu"}
of_standard_fp16 = pytest.mark.parametrize("name", STANDARD_FP16)
each_family = pytest.mark.parametrize("name", NAMES)
of_pairs = pytest.mark.parametrize("name", [name for name in NAMES if not FAMILIES[name].prompt])


def shortened() -> list[parity.ParityQuery]:
    """The gate's first four queries: text, an empty one, other scripts, one that is too long."""
    return WHOLE[:4]


WHOLE = parity.load_parity_set()


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "load_parity_set", shortened)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    folder = tmp_path_factory.mktemp("families")
    return {name: write_tiny(name, folder / name.lower()) for name in NAMES}


Exported = Callable[..., tuple[Path, ExportResult]]


@pytest.fixture(scope="module")
def exported(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A family in fp32, or another precision, exported once: repository, and how it compared."""

    @functools.cache
    def export(name: str, precision: Any = "fp32") -> tuple[Path, ExportResult]:
        repository = tmp_path_factory.mktemp("exported") / "model_repository"
        options = ExportOptions(precision=precision)
        return repository, export_model(str(made[name]), repository, options, on_step=lambda _: None)

    return export


def fp32() -> ExportOptions:
    return ExportOptions(precision="fp32")


def test_every_family_has_a_tiny_model_here() -> None:
    assert set(TINY) == set(FAMILIES)


@each_family
def test_fp32_gives_the_logits_of_transformers_and_the_scores_of_sentence_transformers(
    exported: Exported, name: str
) -> None:
    report = exported(name)[1].report
    assert report.max_logit_difference < 1e-4
    if FAMILIES[name].prompt:
        assert "not compared with sentence-transformers, which leaves the prompt to its caller" in report.notes[0]
        return
    assert report.peer_difference is not None and report.peer_difference < 1e-4
    assert report.notes == ()


@pytest.mark.parametrize(("name", "precision"), OTHERS)
def test_every_precision_of_the_row_is_exported(
    exported: Exported, name: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 and bf16 move the logits of random weights, which lie close together: so few pairs do not tell their order.

    How far bf16 does depends on the processor's instructions.
    """
    if precision in ("int8", "bf16"):
        monkeypatch.setattr(parity, "check", lambda report, precision: None)
    result = exported(name, precision)[1]
    bound = {"fp16": 1e-2, "bf16": 0.1, "int8": 0.5}[precision]
    assert 0 < result.report.max_logit_difference < bound
    assert result.report.clear_tau > 0.9
    assert (result.report.largest_activation is not None) == (precision == "fp16")


def test_layers_that_share_weights_become_static_int8_too(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each product with ranges of its own; random weights tell documents too little apart for the gate's bounds."""
    monkeypatch.setattr(parity, "check", lambda report, precision: None)
    options = ExportOptions(precision="int8", engine="openvino", reduce_range=int8_saturates())
    folder = str(made["AlbertForSequenceClassification"])
    report = export_model(folder, tmp_path / "r", options, on_step=lambda _: None).report
    assert 1e-4 < report.max_logit_difference < 0.1
    assert report.clear_tau > 0.9


@each_family
def test_what_the_row_leaves_out_is_refused_before_the_weights_are_read(
    made: dict[str, Path], tmp_path: Path, name: str
) -> None:
    family, folder = FAMILIES[name], Path(shutil.copytree(made[name], tmp_path / "m"))
    (folder / "model.safetensors").write_bytes(b"")
    for precision in set(PRECISIONS) - set(family.precisions):
        options = ExportOptions(precision=precision)
        with pytest.raises(ExportError) as error:
            export_model(str(folder), tmp_path / "r", options, on_step=lambda _: None)
        assert f"{name} cannot be exported in {precision}: {family.no_fp16}; it can be in fp32" in str(error.value)
        assert family.no_fp16


def test_deberta_has_no_operator_that_openvino_cannot_load(made: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(made["DebertaV2ForSequenceClassification"], name="m", source="s")
    operators = [node.op_type for node in onnx.load(trace.export_graph(checkpoint, tmp_path)).graph.node]
    assert "If" not in operators and operators.count("Log") == 1


@pytest.mark.parametrize(("pooling", "cut"), [("cls", True), ("mean", False)])
@pytest.mark.parametrize("layers", [2, 3])  # the last one reads a window, or all tokens
def test_modernberts_last_layer_is_cut_only_where_the_first_token_is_read(
    tmp_path: Path, pooling: str, cut: bool, layers: int
) -> None:
    changes: dict[str, Any] = {"classifier_pooling": pooling, "num_hidden_layers": layers, "attention_bias": True}
    folder = write_tiny("ModernBertForSequenceClassification", tmp_path / pooling, **changes)
    checkpoint = read_checkpoint(folder, name="m", source="s")
    path = trace.export_graph(checkpoint, tmp_path, cut_last_layer=True)
    assert largest_difference(path, checkpoint) < 1e-5
    assert any("/Wq/" in node.name for node in onnx.load(path).graph.node) == cut


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.prompt])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_last_layer_of_a_decoder_is_computed_for_the_last_token_alone(
    made: dict[str, Path], tmp_path: Path, name: str, precision: Any
) -> None:
    """Each row's own, padded or not. Dynamic int8 has the scale of that token alone: other logits."""
    checkpoint = read_checkpoint(made[name], name="m", source="s")
    products = {}
    for cut in (False, True):
        work = tmp_path / str(cut)
        path = convert(
            trace.export_graph(checkpoint, work, cut_last_layer=cut), precision, work, family=checkpoint.family
        ).path
        assert largest_difference(path, checkpoint) < (0.5 if precision == "int8" else 1e-5)
        products[cut] = rows_of_products(path, checkpoint)
    alone = {f"layers.1/{part}" for part in ("self_attn/q_proj", "self_attn/o_proj", "mlp/gate_proj", "mlp/up_proj")}
    alone |= {"layers.1/mlp/down_proj"}
    assert len(products[False]) == 14 and set(products[False].values()) == {40}
    assert {part for part, rows in products[True].items() if rows == 1} == alone
    assert {part: rows for part, rows in products[False].items() if part not in alone} == {
        part: rows for part, rows in products[True].items() if part not in alone
    }


def rows_of_products(path: Path, checkpoint: Checkpoint) -> dict[str, int]:
    """Tokens of a row that each product of a layer with a weight computes, for a batch 40 tokens wide."""
    model = onnx.load(path)
    named = {
        match[1]: node
        for node in model.graph.node
        if "MatMul" in node.op_type and (match := re.search(r"(layers\.\d/\w+/\w+_proj)/MatMul", node.name))
    }
    outputs = [node.output[0] for node in named.values()]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = next(batch for batch in batches(checkpoint) if batch["input_ids"].shape == (4, 40))
    values = session.run(outputs, batch)
    return {name: value.shape[1] for name, value in zip(named, values, strict=True)}


# --- several labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.modules])
def test_the_classifier_of_the_row_has_a_row_for_each_label(tmp_path: Path, name: str) -> None:
    model = reference.load_model(write_tiny(name, tmp_path / "m", labels=3))
    classifier = model.get_submodule(FAMILIES[name].classifier)
    assert (type(classifier), classifier.out_features) == (torch.nn.Linear, 3)


@pytest.mark.parametrize(  # a classifier of its own, and one inside a head
    ("name", "precision"), [("BertForSequenceClassification", "fp32"), ("XLMRobertaForSequenceClassification", "int8")]
)
def test_the_logit_of_one_of_two_labels_is_the_score(
    tmp_path: Path, name: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny(name, tmp_path / "two", labels=2, id2label={0: "off topic", 1: "relevant"})
    if precision == "int8":  # random weights hold documents too close together for so few pairs
        monkeypatch.setattr(parity, "check", lambda report, precision: None)
    options = ExportOptions(precision=precision, label="relevant")
    result = export_model(str(folder), tmp_path / "r", options, on_step=lambda _: None)
    assert result.report.max_logit_difference < {"fp32": 1e-4, "int8": 0.5}[precision]
    assert result.report.clear_tau > 0.9
    assert result.report.peer_difference is not None and result.report.peer_difference < 1e-4
    manifest = result.manifest
    assert (manifest.model.label, manifest.model.activation) == ("1 (relevant)", "identity")
    assert manifest.notes == ("The score is the logit of label 1 (relevant), one of 2; the others are not computed.",)


def test_another_label_is_another_model(tmp_path: Path) -> None:
    """The gate holds it against the label that is asked for, and versions of a name have the same."""
    folder = write_tiny("BertForSequenceClassification", tmp_path / "two", labels=2)
    export_model(str(folder), tmp_path / "r", ExportOptions(precision="fp32", label="1"), on_step=lambda _: None)
    assert "the fp32 export does not agree with PyTorch" in refusal(folder, tmp_path / "r", label="0")
    with pytest.raises(ExportError, match=r"other settings \(label '1 \(LABEL_1\)' → '0 \(LABEL_0\)'\)"):
        export_model(str(folder), tmp_path / "r", ExportOptions(precision="fp32", label="0"), on_step=lambda _: None)


# --- the gate can fail ----------------------------------------------------------------------------------------------


def refusal(folder: Path, repository: Path, *, label: str | None = None, **changes: Any) -> str:
    checkpoint = read_checkpoint(folder, ExportOptions(label=label), name=folder.name, source="s")
    served = dataclasses.replace(served_model(checkpoint, fp32()), **changes)
    with pytest.raises(ExportError) as error:
        run_gate(checkpoint, repository, served, on_step=lambda _: None)
    return str(error.value)


@each_family
def test_a_wrong_pad_is_caught(made: dict[str, Path], exported: Exported, name: str) -> None:
    right = read_checkpoint(made[name], name="m", source="s").pad_token_id
    message = refusal(made[name], exported(name)[0], pad_token_id=right + 5)
    assert f"is {right + 5}, transformers has {right}" in message


@of_pairs
def test_a_border_at_another_place_is_caught(
    made: dict[str, Path], exported: Exported, name: str, tmp_path: Path
) -> None:
    """Swapped segments where the model reads them; query and document in each other's place everywhere."""
    repository = Path(shutil.copytree(exported(name)[0], tmp_path / "r"))
    path = repository / f"{name.lower()}-tokenizer" / "1" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    segments = read_checkpoint(made[name], name=name.lower(), source="s").token_type_ids
    content["post_processor"] = swapped(content["post_processor"], segments=segments)
    path.write_text(json.dumps(content), encoding="utf-8")
    message = refusal(made[name], repository)
    assert ("token_type_ids at position 0" if segments else "input_ids at position") in message


def swapped(processor: dict[str, Any], *, segments: bool) -> dict[str, Any]:
    """Of a template: the other segments, or one separator less between query and document."""
    if processor["type"] == "RobertaProcessing":
        sep, cls = processor["sep"], processor["cls"]
        pair = [special(cls[0]), text("A"), special(sep[0]), text("B"), special(sep[0])]
        single = [special(cls[0]), text("A"), special(sep[0])]
        tokens = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (sep, cls)}
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    if segments:
        for part in processor["pair"]:
            (kind,) = part.values()
            kind["type_id"] = 1 - kind["type_id"]
        return processor
    separators = [number for number, part in enumerate(processor["pair"]) if "SpecialToken" in part]
    del processor["pair"][separators[1]]
    if len(separators) == 3:  # a single one: it takes the place in front of the query
        processor["pair"].insert(0, special("[SEP]"))
    return processor


def special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def text(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in NAMES), *((name, "fp16") for name in STANDARD_FP16)]
)
def test_a_dropped_layer_is_caught(
    made: dict[str, Path], exported: Exported, name: str, precision: Any, tmp_path: Path
) -> None:
    """The checkpoint with one layer, and what was made of it with two."""
    one = Path(shutil.copytree(made[name], tmp_path / made[name].name))
    shorter: dict[str, Any] = {FAMILIES[name].depth: 1}
    if name.startswith("Qwen"):
        shorter["layer_types"] = ["full_attention"]
    kind = AutoModel if FAMILIES[name].modules else AutoModelForSequenceClassification
    model = kind.from_pretrained(one, **shorter)
    model.save_pretrained(one)
    repository = exported(name, precision)[0]
    assert f"the {precision} export does not agree with PyTorch" in refusal(one, repository, precision=precision)


# --- fp16 from standard operators -----------------------------------------------------------------------------------


@of_standard_fp16
def test_sums_mask_angles_and_head_are_fp32_and_products_and_tables_fp16(exported: Exported, name: str) -> None:
    path = exported(name, "fp16")[0] / f"{name.lower()}-encoder" / "1" / "model.onnx"
    model, types = onnx.load(path), tensor_types(path)
    nodes = [node for node in model.graph.node if types.get(node.output[0], "").startswith("float")]
    takers = {name: [taker for taker in nodes if name in taker.input] for node in nodes for name in node.output}
    for node in nodes:
        kinds = {types[node.output[0]], *(types[name] for name in node.input if types.get(name, "")[:5] == "float")}
        if node.op_type in FULL or any(taker.op_type in ("Sin", "Cos") for taker in takers[node.output[0]]):
            assert kinds == {"float"}, node.name
        if node.op_type == "MatMul":
            assert kinds == ({"float"} if node.name.startswith("/head") else {"float16"}), node.name
    assert {node.op_type for node in nodes} >= {"MatMul", "Erf", "Where", "Softmax", "LayerNormalization", "Gemm"}
    tables = [types[node.input[0]] for node in nodes if node.op_type == "Gather" and node.input[0].endswith(".weight")]
    assert tables and set(tables) == {"float16"}
    assert types["logits"] == "float"


@of_standard_fp16
def test_the_graph_is_strongly_typed_as_tensorrt_wants_it(exported: Exported, name: str) -> None:
    model = onnx.load(exported(name, "fp16")[0] / f"{name.lower()}-encoder" / "1" / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    typed = {value.name for value in inferred.graph.value_info} | {"logits"}
    assert {output for node in model.graph.node for output in node.output} <= typed


@of_standard_fp16
def test_a_row_of_nothing_but_padding_is_finite_in_fp16(made: dict[str, Path], exported: Exported, name: str) -> None:
    """A mask of -inf would give NaN, and the smallest fp32 number is -inf in fp16."""
    path = exported(name, "fp16")[0] / f"{name.lower()}-encoder" / "1" / "model.onnx"
    batch = batches(read_checkpoint(made[name], name="m", source="s"))[2]
    if FAMILIES[name].modules:  # their first token is read; a mean of no token is none in PyTorch too
        batch["attention_mask"][1] = 0
    else:
        batch["attention_mask"][1, 1:] = 0
    assert np.isfinite(onnx_logits(path, [batch])[0]).all()


@pytest.mark.parametrize("activation", [torch.nn.SiLU, torch.nn.ReLU, torch.nn.Identity])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_head_of_modules_stays_fp32_whatever_its_modules_are(tmp_path: Path, pooling: str, activation: Any) -> None:
    folder = write_tiny("ModernBertModel", tmp_path / "m", norm_bias=True, mlp_bias=True)
    write_head(folder, pooling=pooling, activation=activation)
    checkpoint = read_checkpoint(folder, name="m", source="s")
    graph = trace.export_graph(checkpoint, tmp_path, cut_last_layer=True)
    path = convert(graph, "fp16", tmp_path, family=checkpoint.family).path
    types, nodes = tensor_types(path), onnx.load(path).graph.node
    assert {types[node.output[0]] for node in nodes if re.match(r"/(head|activations)\.", node.name)} == {"float"}
    assert largest_difference(path, checkpoint) < 1e-2


@pytest.mark.parametrize("name", ["ModernBertForSequenceClassification", "ModernBertModel"])
def test_a_product_of_two_halves_of_an_output_may_not_pass_fp16_either(
    made: dict[str, Path], exported: Exported, name: str, tmp_path: Path
) -> None:
    """No layer gives more than 65,504 here; the second matrix of the feed-forward takes more."""
    wide = with_weight(made[name], tmp_path / "wide", "layers.1.mlp.Wi.weight", lambda weight: weight.mul_(1e3))
    folder = tmp_path / made[name].name
    with_weight(wide, folder, "layers.1.mlp.Wo.weight", lambda weight: weight.mul_(1e-4))
    message = refusal(folder, exported(name, "fp16")[0], precision="fp16")
    assert re.search(r"layers\.1\.mlp\.Wo reach \d\S* on the parity set, fp16 ends at 65504; export it in", message)


# --- patterns and keys ----------------------------------------------------------------------------------------------


def test_a_pattern_that_matches_no_operator_fails_the_export(tmp_path: Path, made: dict[str, Path]) -> None:
    checkpoint = read_checkpoint(made["ElectraForSequenceClassification"], name="m", source="s")
    other = dataclasses.replace(checkpoint.family, feed_forward_out="/block/down/MatMul$")
    path = trace.export_graph(checkpoint, tmp_path)
    with pytest.raises(ExportError, match="no operator of the graph is named like Electra"):
        convert(path, "int8", tmp_path, family=other)


def test_a_pattern_that_matches_no_layer_fails_the_watch_for_an_overflow(made: dict[str, Path]) -> None:
    model = reference.load_model(made["DistilBertForSequenceClassification"])
    with pytest.raises(ExportError, match="no layer of DistilBertForSequence.* is named like those that fp16 comp"):
        reference.ActivationPeak().watch(model, FAMILIES["BertForSequenceClassification"].in_half)


@each_family
def test_more_layers_than_the_weights_hold_are_refused(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made[name], tmp_path / "m"))
    key = FAMILIES[name].stored_layers
    edit(folder, **{key: 7})
    with pytest.raises(ExportError, match=f"{key} in config.json is 7, the weights hold [12] layers"):
        read_checkpoint(folder, name="m", source="s")


@pytest.mark.parametrize("name", [name for name in NAMES if not FAMILIES[name].modules])  # modules state it too
def test_another_width_than_the_tables_have_is_refused(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made[name], tmp_path / "m"))
    family = FAMILIES[name]
    key = family.width if family.embedding_width is None else family.embedding_width[0]
    edit(folder, **{key: 64})
    with pytest.raises(ExportError, match=rf"the weights hold \w+ of .* config.json states .*, {key}\)"):
        read_checkpoint(folder, name="m", source="s")


UNSUPPORTED: dict[str, Any] = {
    "position_embedding_type": "relative_key",
    "inner_group_num": 2,
    "rope_scaling": "yarn",
    "use_sliding_window": True,
    "use_bidirectional_attention": True,
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in NAMES for key in FAMILIES[name].required])
def test_what_the_row_does_not_support_is_refused(made: dict[str, Path], tmp_path: Path, name: str, key: str) -> None:
    folder, value = Path(shutil.copytree(made[name], tmp_path / "m")), UNSUPPORTED[key]
    edit(folder, **{key: value})
    with pytest.raises(ExportError, match=f"its {key} is {value}; supported is {FAMILIES[name].required[key][0]}"):
        read_checkpoint(folder, name="m", source="s")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
