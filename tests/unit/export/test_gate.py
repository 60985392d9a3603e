"""The gate can fail: for both families and in every precision, an export with one fault must not pass."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from support.folders import fingerprint
from transformers import AutoModelForSequenceClassification

from triton_rerank_export.checkpoint.resolve import Checkpoint, read_checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity, reference
from triton_rerank_export.gate.gate import run_gate
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model, served_model
from triton_rerank_export.repository.triton_config import PRECISIONS, Precision, ServedModel
from triton_rerank_server.backends.encoder.engine import Engine
from triton_rerank_server.backends.tokenizer.pairs import PairTensors, PairTokenizer

FAMILIES = ("tiny-bert", "tiny-xlmr")

both_families = pytest.mark.parametrize("name", FAMILIES)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repository"))


def served_as(checkpoint: Checkpoint, precision: Precision = "fp32") -> ServedModel:
    return served_model(checkpoint, ExportOptions(precision=precision))


def gate(folder: Path, repository: Path, name: str, **changes: Any) -> parity.ParityReport:
    checkpoint = read_checkpoint(folder, name=name, source="s")
    return run_gate(checkpoint, repository, replace(served_as(checkpoint), **changes), on_step=lambda _: None)


def refusal(folder: Path, repository: Path, name: str, **changes: Any) -> str:
    with pytest.raises(ExportError) as error:
        gate(folder, repository, name, **changes)
    return str(error.value)


def tokenizer_file(repository: Path, name: str) -> Path:
    return repository / f"{name}-tokenizer" / "1" / "tokenizer.json"


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@both_families
def test_what_was_exported_passes(checkpoints: dict[str, Path], repository: Path, name: str) -> None:
    steps: list[str] = []
    checkpoint = read_checkpoint(checkpoints[name], name=name, source="s")
    report = run_gate(checkpoint, repository, served_as(checkpoint), on_step=steps.append)
    assert report.pairs == sum(len(query.documents) for query in parity.load_parity_set())
    assert report.max_logit_difference < 1e-5
    assert report.kendall_tau > 0.999
    assert report.top1_kept == report.top10_overlap == 1.0
    assert report.largest_activation is None
    assert report.peer_difference is not None and report.peer_difference < 1e-5 and report.notes == ()
    assert "comparing: sentence-transformers, query 20 of 20" in steps
    assert steps[0] == "comparing tokens with transformers"
    assert steps[1] == "comparing: PyTorch, query 1 of 20"
    assert steps[-1] == "comparing: the export, query 20 of 20"


# --- tokens: no logit need move for these to be caught -----------------------------------------------------------


@both_families
def test_a_wrong_pad_id_is_caught(checkpoints: dict[str, Path], repository: Path, name: str) -> None:
    right = read_checkpoint(checkpoints[name], name=name, source="s").pad_token_id
    message = refusal(checkpoints[name], repository, name, pad_token_id=right + 5)
    assert f"{name}: input_ids at position" in message
    assert f"is {right + 5}, transformers has {right}, for 'how do I compress a file on Linux?' / 'gzip" in message


def swap_segments(post_processor: dict[str, Any]) -> None:
    """[CLS] query [SEP] become segment 1, document [SEP] segment 0."""
    sep, cls = post_processor["sep"], post_processor["cls"]
    post_processor.clear()
    post_processor |= {
        "type": "TemplateProcessing",
        "single": [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)],
        "pair": [special("[CLS]", 1), text("A", 1), special("[SEP]", 1), text("B", 0), special("[SEP]", 0)],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (sep, cls)},
    }


def drop_a_separator(post_processor: dict[str, Any]) -> None:
    """XLM-R's pairs have no segments; two </s> in the middle tell its query from its document."""
    middle = [n for n, part in enumerate(post_processor["pair"]) if part.get("SpecialToken", {}).get("id") == "</s>"]
    del post_processor["pair"][middle[0]]


def special(name: str, segment: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": segment}}


def text(name: str, segment: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": segment}}


@pytest.mark.parametrize(
    ("name", "fault", "fragment"),
    [
        ("tiny-bert", swap_segments, "token_type_ids at position 0 of 128 is 1, transformers has 0"),
        ("tiny-xlmr", drop_a_separator, "input_ids at position"),
    ],
)
def test_swapped_segments_are_caught(
    checkpoints: dict[str, Path], repository: Path, name: str, fault: Callable[[dict[str, Any]], None], fragment: str
) -> None:
    edit_json(tokenizer_file(repository, name), lambda content: fault(content["post_processor"]))
    assert fragment in refusal(checkpoints[name], repository, name)


@both_families
def test_another_tokenizer_is_caught(checkpoints: dict[str, Path], repository: Path, name: str) -> None:
    other = FAMILIES[1 - FAMILIES.index(name)]
    shutil.copyfile(tokenizer_file(repository, other), tokenizer_file(repository, name))
    assert "input_ids at position" in refusal(checkpoints[name], repository, name)


@both_families
def test_another_normalizer_is_caught(checkpoints: dict[str, Path], repository: Path, name: str) -> None:
    before = {"type": "Replace", "pattern": {"String": "ff"}, "content": "f"}
    edit_json(
        tokenizer_file(repository, name),
        lambda content: content.update(normalizer={"type": "Sequence", "normalizers": [before, content["normalizer"]]}),
    )
    assert "input_ids at position" in refusal(checkpoints[name], repository, name)


def add_a_token(folder: Path) -> None:
    """A token that transformers adds to the tokenizer, and tokenizer.json does not know."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    edit_json(
        folder / "tokenizer_config.json",
        lambda content: content.setdefault("added_tokens_decoder", {}).update({"900": {"content": "zip"} | flags}),
    )


@both_families
def test_a_token_that_only_transformers_adds_is_caught(
    checkpoints: dict[str, Path], repository: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(checkpoints[name], tmp_path / name))
    add_a_token(folder)
    message = refusal(folder, repository, name)
    assert "transformers and tokenizer.json do not add the same tokens ('zip'); they stand in tokenizer_c" in message


@both_families
def test_a_cut_one_token_short_is_caught_by_the_overlong_pairs(
    checkpoints: dict[str, Path], repository: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = PairTokenizer.encode

    def one_token_less(tokenizer: PairTokenizer, query: str, documents: list[str]) -> PairTensors:
        return encode(tokenizer, query, documents, tokenizer.limits(127, 64))

    monkeypatch.setattr(PairTokenizer, "encode", one_token_less)
    assert "input_ids at position" in refusal(checkpoints[name], repository, name)


# --- logits --------------------------------------------------------------------------------------------------------


def without_last_layer(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    model = AutoModelForSequenceClassification.from_pretrained(target, num_hidden_layers=1)
    model.save_pretrained(target)
    return target


@every_precision
@both_families
def test_a_dropped_layer_is_caught(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is served was exported from the model without its last layer, and is held against the whole model."""
    folder, repository = without_last_layer(checkpoints[name], tmp_path / name), tmp_path / "model_repository"
    with monkeypatch.context() as patch:
        patch.setattr(parity, "check", lambda report, precision: None)  # one random layer is too little for int8
        export_model(str(folder), repository, ExportOptions(precision=precision), on_step=lambda _: None)
    message = refusal(checkpoints[name], repository, name, precision=precision)
    assert f"the {precision} export does not agree with PyTorch on" in message
    assert "the bound is at least" in message
    assert len(message.splitlines()) == 6  # and the five worst pairs


def edit_graph(repository: Path, name: str, edit: Callable[[Any], Any], *, dims: list[int]) -> None:
    """Change the last initializer of a shape."""
    path = repository / f"{name}-encoder" / "1" / "model.onnx"
    model = onnx.load(path)
    tensor = [tensor for tensor in model.graph.initializer if list(tensor.dims) == dims][-1]
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, path)


@both_families
def test_one_matrix_that_is_zero_is_caught(checkpoints: dict[str, Path], repository: Path, name: str) -> None:
    edit_graph(repository, name, np.zeros_like, dims=[64, 32])
    assert "does not agree with PyTorch" in refusal(checkpoints[name], repository, name)


def test_swapped_segment_embeddings_are_caught(checkpoints: dict[str, Path], repository: Path) -> None:
    edit_graph(repository, "tiny-bert", lambda rows: rows[::-1].copy(), dims=[2, 32])
    assert "does not agree with PyTorch" in refusal(checkpoints["tiny-bert"], repository, "tiny-bert")


@both_families
def test_a_logit_that_is_not_finite_is_caught_where_logits_have_no_bound(
    checkpoints: dict[str, Path], repository: Path, name: str
) -> None:
    edit_graph(repository, name, lambda matrix: np.full_like(matrix, np.nan), dims=[64, 32])
    message = refusal(checkpoints[name], repository, name, precision="int8")
    assert "largest logit difference is nan" in message


def test_a_graph_with_a_smaller_vocabulary_is_one_message(checkpoints: dict[str, Path], repository: Path) -> None:
    vocabulary = len(json.loads(tokenizer_file(repository, "tiny-bert").read_text(encoding="utf-8"))["model"]["vocab"])
    edit_graph(repository, "tiny-bert", lambda rows: rows[:100].copy(), dims=[vocabulary, 32])
    message = refusal(checkpoints["tiny-bert"], repository, "tiny-bert")
    assert "the exported graph does not take its tokenizer's tokens: ONNX Runtime cannot score" in message


def test_a_pad_id_outside_the_vocabulary_is_one_message(checkpoints: dict[str, Path], repository: Path) -> None:
    message = refusal(checkpoints["tiny-bert"], repository, "tiny-bert", pad_token_id=10**6)
    assert "pad_token_id 1000000 of config.pbtxt is outside this tokenizer's vocabulary" in message


# --- activations ---------------------------------------------------------------------------------------------------


def scaled(folder: Path, target: Path, tensor: str, factor: float) -> Path:
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    matches = [key for key in weights if key.endswith(tensor)]
    weights[matches[0]] = weights[matches[0]] * np.float32(factor)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@both_families
def test_an_activation_that_fp16_cannot_hold_is_refused(
    checkpoints: dict[str, Path], repository: Path, tmp_path: Path, name: str
) -> None:
    folder = scaled(checkpoints[name], tmp_path / name, "encoder.layer.1.output.dense.weight", 3e4)
    message = refusal(folder, repository, name, precision="fp16")
    assert "encoder.layer.1.output.dense reach" in message
    assert "on the parity set, fp16 ends at 65504; export it in fp32" in message


@both_families
def test_a_matrix_that_does_not_fit_fp16_stays_in_fp32_and_is_not_watched(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = scaled(checkpoints[name], tmp_path / name, "encoder.layer.1.output.dense.weight", 1e6)
    options = ExportOptions(precision="fp16")
    report = export_model(str(folder), tmp_path / "model_repository", options, on_step=lambda _: None).report
    assert report.largest_activation is not None and report.largest_activation < 100


@both_families
def test_the_classifier_stays_in_fp32_and_may_pass_65504(
    checkpoints: dict[str, Path], repository: Path, tmp_path: Path, name: str
) -> None:
    head = {"tiny-bert": "classifier.weight", "tiny-xlmr": "classifier.out_proj.weight"}[name]
    folder = scaled(checkpoints[name], tmp_path / name, head, 1e7)
    assert "does not agree with PyTorch" in refusal(folder, repository, name, precision="fp16")  # no word of 65504


@both_families
def test_the_largest_activation_is_reported_for_fp16(checkpoints: dict[str, Path], repository: Path, name: str) -> None:
    report = gate(checkpoints[name], repository, name, precision="fp16")
    assert report.largest_activation is not None and report.largest_activation_module is not None
    assert 0.1 < report.largest_activation < 100
    assert ".encoder.layer." in report.largest_activation_module


# --- the export that asked ------------------------------------------------------------------------------------------


@both_families
def test_an_export_that_the_gate_refuses_changes_nothing(
    checkpoints: dict[str, Path], repository: Path, tmp_path: Path, name: str
) -> None:
    before = fingerprint(repository.parent)
    folder = Path(shutil.copytree(checkpoints[name], tmp_path.with_name(f"{tmp_path.name}-checkpoint") / name))
    add_a_token(folder)
    with pytest.raises(ExportError, match="do not add the same tokens"):
        export_model(str(folder), repository, ExportOptions(precision="fp32", replace=True), on_step=lambda _: None)
    assert fingerprint(repository.parent) == before


def test_pytorch_is_out_of_memory_before_the_session_opens(
    checkpoints: dict[str, Path], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    alive_at_opening: list[bool] = []
    load = reference.load_model

    def load_and_watch(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        loaded.append(weakref.ref(model))
        return model

    def open_and_look(*args: Any) -> Any:
        alive_at_opening.append(loaded[0]() is not None)
        return Engine(*args)

    monkeypatch.setattr(reference, "load_model", load_and_watch)
    monkeypatch.setattr("triton_rerank_export.gate.served.Engine", open_and_look)
    gc.disable()  # the gate must not wait for the collector's own time
    try:
        gate(checkpoints["tiny-bert"], repository, "tiny-bert")
    finally:
        gc.enable()
    assert alive_at_opening == [False]
