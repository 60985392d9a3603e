"""Heads that sentence-transformers keeps as modules: computed as it does, held against it, others refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file, save_file
from support.hub import Machine, serve_hub
from support.tiny_families import write_head, write_tiny
from torch import nn

from triton_rerank_export.checkpoint.resolve import Checkpoint, read_checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity, reference
from triton_rerank_export.gate.gate import run_gate
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import ExportResult, export_model, served_model
from triton_rerank_server.backends.encoder.onnxruntime_session import int8_saturates

NAME = "ettin"
WHOLE = parity.load_parity_set()
FP32 = ExportOptions(precision="fp32")


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "load_parity_set", lambda: WHOLE[:4])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("ModernBertModel", tmp_path_factory.mktemp("modules") / NAME)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / NAME))


@pytest.fixture(scope="module")
def repository(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("repository") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "load_parity_set", lambda: WHOLE[:4])
        export(made, target)
    return target


def export(folder: Path, target: Path, options: ExportOptions = FP32) -> ExportResult:
    return export_model(str(folder), target, options, on_step=lambda _: None)


def read(folder: Path) -> Checkpoint:
    return read_checkpoint(folder, name=NAME, source="s", label=str(folder))


def refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as error:
        read(folder)
    message = str(error.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    return message


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def listed(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    change(modules)
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


# --- what is computed -----------------------------------------------------------------------------------------------


def test_ettins_modules_are_read(made: Path) -> None:
    checkpoint = read(made)
    assert (checkpoint.architecture, checkpoint.activation) == ("ModernBertModel", "identity")
    assert (checkpoint.one_of, checkpoint.max_length) == (None, 128)  # config.json, which has two labels, is not asked


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Tanh])
def test_every_activation_and_the_mean_of_all_tokens_are_computed_as_sentence_transformers_does(
    folder: Path, tmp_path: Path, activation: Callable[[], nn.Module]
) -> None:
    write_head(folder, pooling="mean", activation=activation)
    model = reference.load_model(folder)
    text = reference.Reference(folder, max_length=128, tensors=("input_ids", "attention_mask"))
    from sentence_transformers import CrossEncoder

    theirs = CrossEncoder(str(folder), device="cpu", local_files_only=True).predict([("a file", "zip it"), ("a", "")])
    ours = [float(text.logits(query, [document])[0]) for query, document in (("a file", "zip it"), ("a", ""))]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-5)
    assert model.config.classifier_pooling == "mean"


def test_the_last_layer_is_computed_for_the_first_token_alone_if_the_head_reads_no_other(
    made: Path, folder: Path, repository: Path, tmp_path: Path
) -> None:
    nodes = {node.name for node in onnx.load(repository / f"{NAME}-encoder" / "1" / "model.onnx").graph.node}
    assert any("layers.1/attn/Wq/" in name for name in nodes)
    write_head(folder, pooling="mean")
    result = export(folder, tmp_path / "r")
    assert result.report.max_logit_difference < 1e-4
    nodes = {node.name for node in onnx.load(tmp_path / "r" / f"{NAME}-encoder" / "1" / "model.onnx").graph.node}
    assert not any("/Wq/" in name for name in nodes)


def test_static_int8_takes_modules_too(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights tell documents too little apart for the gate's bounds."""
    monkeypatch.setattr(parity, "check", lambda report, precision: None)
    options = ExportOptions(precision="int8", engine="openvino", reduce_range=int8_saturates())
    report = export(made, tmp_path / "r", options).report
    assert 1e-4 < report.max_logit_difference < 0.5
    assert report.clear_tau > 0.8


# --- the gate can fail ----------------------------------------------------------------------------------------------


def without_a_dense(folder: Path) -> None:
    """The widths still fit: the LayerNorm and the last Dense are made as wide as the model."""
    listed(folder, lambda modules: modules.pop(2))
    edit(folder / "3_LayerNorm" / "config.json", dimension=32)
    edit(folder / "4_Dense" / "config.json", in_features=32)
    for path in (folder / "3_LayerNorm", folder / "4_Dense"):
        weights = {name: nn.functional.pad(value, (0, 8), value=0.5) if value.shape[-1] == 24 else value
                   for name, value in load_file(path / "model.safetensors").items()}  # fmt: skip
        save_file(weights, path / "model.safetensors")


def with_the_mean(folder: Path) -> None:
    edit(folder / "1_Pooling" / "config.json", pooling_mode="mean")


def without_the_bias(folder: Path) -> None:
    path = folder / "3_LayerNorm" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"norm.bias": weights["norm.bias"] * 0}, path)


@pytest.mark.parametrize("change", [without_a_dense, with_the_mean, without_the_bias])
def test_a_graph_with_another_head_than_the_checkpoints_is_caught(
    folder: Path, repository: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    checkpoint = read(folder)
    with pytest.raises(ExportError, match="the fp32 export does not agree with PyTorch"):
        run_gate(checkpoint, repository, served_model(checkpoint, FP32), on_step=lambda _: None)


def no_dense(model: Any) -> None:
    model.head[0].weight.data = nn.functional.pad(nn.init.eye_(model.head[0].weight.data[:, :24].clone()), (0, 8))
    model.activations[0] = nn.Identity()


def the_mean(model: Any) -> None:
    model.config.classifier_pooling = "mean"


def no_bias(model: Any) -> None:
    model.head[1].bias.data.zero_()


@pytest.mark.parametrize("wrong", [no_dense, the_mean, no_bias])
def test_a_head_that_we_would_compute_wrongly_is_caught_by_sentence_transformers(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any], None]
) -> None:
    """In the graph and in our PyTorch alike: only the second reference reads the modules by itself."""
    load = reference.load_model

    def wrongly(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        wrong(model)
        return model

    monkeypatch.setattr(reference, "load_model", wrongly)
    with pytest.raises(ExportError, match="sentence-transformers gives the logit"):
        export(made, tmp_path / "r")


# --- what is refused ------------------------------------------------------------------------------------------------

ST = "sentence_transformers.sentence_transformer.modules"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.insert(2, {"path": "5_Normalize", "type": f"{ST}.normalize.Normalize"}), "Pooling, Normalize, De"),
        (lambda m: m.pop(), "Transformer, Pooling, Dense, LayerNorm; supported is one Transformer, alone or with Pool"),
        (lambda m: m.pop(1), "Transformer, Dense, LayerNorm, Dense; supported is one Transformer"),
        (lambda m: m[4].update(type="modeling_mine.Dense"), "LayerNorm, Dense; supported is one Transformer"),
        (lambda m: m[2].update(path="../2_Dense"), "modules.json keeps Dense in '../2_Dense'; a folder was expected"),
        (lambda m: m[0].update(path="0_Transformer"), "modules.json keeps the Transformer in '0_Transformer'"),
    ],
)
def test_other_modules_are_refused_by_name(
    folder: Path, change: Callable[[list[dict[str, Any]]], object], found: str
) -> None:
    listed(folder, change)
    assert found in refusal(folder)


@pytest.mark.parametrize(
    ("module", "changes", "found"),
    [
        ("1_Pooling", {"pooling_mode": "max"}, "pooling_mode in 1_Pooling/config.json is 'max'; cls or mean was"),
        ("1_Pooling", {"pooling_mode": ["cls", "mean"]}, "pooling_mode in 1_Pooling/config.json is ['cls', 'mean']"),
        ("1_Pooling", {"include_prompt": False}, "include_prompt in 1_Pooling/config.json is False; true was expected"),
        ("1_Pooling", {"embedding_dimension": 64}, "embedding_dimension in 1_Pooling/config.json is 64; 32 was"),
        ("2_Dense", {"in_features": 16}, "in_features in 2_Dense/config.json is 16; 32 was expected"),
        ("2_Dense", {"in_features": "32"}, "in_features in 2_Dense/config.json is '32'; a number from 1 was expected"),
        ("2_Dense", {"bias": None}, "bias in 2_Dense/config.json is None; true or false was expected"),
        ("2_Dense", {"bias": True}, "2_Dense/model.safetensors holds {'linear.weight': [24, 32]}, its config states"),
        ("2_Dense", {"activation_function": "torch.nn.modules.activation.PReLU"}, "PReLU'; GELU, Identity, ReLU,"),
        ("2_Dense", {"activation_function": "mine.GELU"}, "activation_function in 2_Dense/config.json is 'mine.GELU'"),
        (
            "2_Dense",
            {"module_output_name": "scores"},
            "module_output_name in 2_Dense/config.json is 'scores'; sentence",
        ),
        ("2_Dense", {"module_input_name": "token_embeddings"}, "module_input_name in 2_Dense/config.json is 'token_e"),
        ("2_Dense", {"dropout": 0.1}, "dropout in 2_Dense/config.json is not a setting of Dense that is known here"),
        ("3_LayerNorm", {"dimension": 32}, "dimension in 3_LayerNorm/config.json is 32; 24 was expected"),
        ("4_Dense", {"out_features": 2}, "out_features in 4_Dense/config.json is 2; 1, a reranker's one score, was"),
        ("4_Dense", {"module_output_name": None}, "module_output_name in 4_Dense/config.json is 'sentence_embedding'"),
    ],
)
def test_a_module_that_would_be_computed_otherwise_is_named_with_its_key(
    folder: Path, module: str, changes: dict[str, Any], found: str
) -> None:
    edit(folder / module / "config.json", **changes)
    assert found in refusal(folder)


@pytest.mark.parametrize(
    ("stated", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, None),
        ({}, "mean"),
    ],
)
def test_the_older_words_for_pooling_are_read(folder: Path, stated: dict[str, bool], pooling: str | None) -> None:
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"word_embedding_dimension": 32, **stated}), encoding="utf-8")
    if pooling is None:
        assert "pooling_mode in 1_Pooling/config.json is 'max_tokens'; cls or mean was expected" in refusal(folder)
    else:
        assert reference.load_model(folder).config.classifier_pooling == pooling


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "2_Dense/config.json", "3_LayerNorm/model.safetensors"])
def test_a_file_of_a_module_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = refusal(folder)
    assert name.split("/")[0] in message and name.split("/")[1] in message


def test_modules_behind_another_architecture_are_refused(folder: Path) -> None:
    edit(folder / "config.json", architectures=["BertModel"], model_type="bert")
    assert "modules.json puts modules behind BertModel; they are served behind ModernBertModel only" in refusal(folder)


def test_an_embedding_model_is_none_of_these(folder: Path) -> None:
    """The same files but the one that says what it is."""
    edit(folder / "config_sentence_transformers.json", model_type="SentenceTransformer")
    assert "its architecture is ModernBertModel, an embedding model" in refusal(folder)


# --- from the hub ---------------------------------------------------------------------------------------------------


def test_the_modules_are_fetched_configs_before_the_weights(made: Path, folder: Path, tmp_path: Path) -> None:
    hub_id, commit = "acme/ettin", "0123456789abcdef0123456789abcdef01234567"
    with serve_hub(folder, hub_id=hub_id, commit=commit) as hub:
        machine = Machine.with_cache(tmp_path / "hf-home", hub)
        edit(folder / "2_Dense" / "config.json", bias="no")
        assert "bias in 2_Dense/config.json is 'no'" in machine.refusal(f"{hub_id}@{commit}")
        assert "model.safetensors" not in hub.fetched()
        shutil.copy(made / "2_Dense" / "config.json", folder / "2_Dense" / "config.json")
        shutil.rmtree(machine.cache)
        found = Path(machine.resolve(f"{hub_id}@{commit}")["folder"])
        assert (found / "4_Dense" / "model.safetensors").is_file() and hub.fetched().count("model.safetensors") == 4
        hub.requests.clear()
        machine.resolve(f"{hub_id}@{commit}")
        assert hub.requests == []  # the copy is whole
        (found / "4_Dense" / "model.safetensors").resolve().unlink()
        machine.resolve(f"{hub_id}@{commit}")
        assert hub.fetched() == ["model.safetensors"]
