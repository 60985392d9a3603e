import argparse
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from support.tiny_families import write_tiny
from tokenizers import BertWordPieceTokenizer
from tokenizers.processors import BertProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from triton_rerank_export.checkpoint.facts import read_facts
from triton_rerank_export.checkpoint.families import FAMILIES
from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune import command, progress
from triton_rerank_export.finetune import train as finetune_module
from triton_rerank_export.finetune.config import FinetuneConfig, FinetuneReport
from triton_rerank_export.finetune.data import Group
from triton_rerank_export.finetune.progress import CURVES, draw
from triton_rerank_export.finetune.train import evaluate, finetune, group_loss, ndcg_at_10, pairwise_accuracy

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "brown", "grey"]
SIZES: dict[str, Any] = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 66}
torch.set_num_threads(1)  # for models this small, a second thread only waits
QUICK: dict[str, Any] = {"max_length": 32, "max_query_tokens": 16, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator([f"which thing is {colour} ? the thing is {colour} ." for colour in COLOURS], 200)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained.post_processor = BertProcessing(
        ("[SEP]", trained.token_to_id("[SEP]")), ("[CLS]", trained.token_to_id("[CLS]"))
    )
    trained.enable_truncation(8)  # as some published tokenizer files have it
    trained.enable_padding(length=8)
    trained.save(str(path))
    return BertTokenizerFast(tokenizer_file=str(path), model_max_length=64)


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    BertForSequenceClassification(BertConfig(**SIZES, num_labels=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _groups(*, scores: bool = False) -> list[Group]:
    """Groups in which the red thing is the one that is wanted."""
    rng = np.random.default_rng(1)
    groups = []
    for i in range(40):
        documents = ("the thing is red .", *(f"the thing is {c} ." for c in rng.permutation(COLOURS[1:])[:5]))
        teacher = (2.0, *(-float(j) for j in range(5))) if scores else None
        groups.append(Group(f"which thing is it ? {i}", documents, 1, teacher))
    return groups


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return weights


def test_training_teaches_the_order_and_leaves_the_word_embeddings(checkpoint: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(steps=30, learning_rate=3e-3, held_out_fraction=0.2, **QUICK)
    report = finetune(checkpoint, _groups(), tmp_path / "out", config)
    assert report.before is not None
    assert report.after is not None
    assert report.after.ndcg_at_10 > max(0.95, report.before.ndcg_at_10)
    assert report.steps == 30
    assert report.pairs == 30 * 4 * 6
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(_weights(checkpoint)[name], _weights(tmp_path / "out")[name])
    assert evaluate(tmp_path / "out", _groups(), config).ndcg_at_10 > 0.95


def test_the_output_loads_as_a_one_label_model_without_the_tokenizers_old_cut(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finetune(checkpoint, _groups(), out, FinetuneConfig(steps=1, **QUICK))
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert model.config.num_labels == 1
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    written = json.loads((out / "tokenizer.json").read_text())
    assert written["truncation"] is None
    assert written["padding"] is None
    assert len(AutoTokenizer.from_pretrained(out)("red " * 40)["input_ids"]) == 42
    assert str(checkpoint) not in (out / "config.json").read_text() + (out / "tokenizer_config.json").read_text()
    assert json.loads((out / "finetune.json").read_text())["report"]["steps"] == 1


def test_the_same_run_gives_the_same_weights_and_another_seed_gives_others(checkpoint: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        finetune(checkpoint, _groups(scores=True), tmp_path / name, FinetuneConfig(steps=3, seed=seed, **QUICK))
    modes = {path.stat().st_mode for path in (tmp_path / "one").iterdir()}
    assert len(modes) == 1  # who may read one file may read all
    one, two, three = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_an_encoder_without_a_classifier_gets_one(tokenizer: Any, tmp_path: Path) -> None:
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    finetune(tmp_path / "body", _groups(), tmp_path / "out", FinetuneConfig(steps=1, **QUICK))
    assert _weights(tmp_path / "out")["classifier.weight"].shape == (1, 32)


def test_an_xlm_roberta_is_trained_too(tokenizer: Any, tmp_path: Path) -> None:
    config = XLMRobertaConfig(**SIZES, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    XLMRobertaForSequenceClassification(config).save_pretrained(tmp_path / "xlmr")
    tokenizer.save_pretrained(tmp_path / "xlmr")
    report = finetune(tmp_path / "xlmr", _groups(), tmp_path / "out", FinetuneConfig(steps=2, **QUICK))
    assert report.steps == 2
    with pytest.raises(ExportError, match=r"max_length is 65, but .* takes 64 tokens at most: give --max-length 64"):
        finetune(tmp_path / "xlmr", _groups(), tmp_path / "out", FinetuneConfig(**QUICK | {"max_length": 65}))


def test_bf16_trains_and_keeps_fp32_weights(checkpoint: Path, tmp_path: Path) -> None:
    finetune(
        checkpoint, _groups(scores=True), tmp_path / "out", FinetuneConfig(steps=2, **QUICK | {"precision": "bf16"})
    )
    assert {tensor.dtype for tensor in _weights(tmp_path / "out").values()} == {torch.float32}


def test_a_budget_of_time_ends_the_run(checkpoint: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(epochs=10**6, minutes=0.01, held_out_fraction=0, **QUICK)
    report = finetune(checkpoint, _groups(), tmp_path / "out", config)
    assert report.steps >= 1
    assert report.duration_s < 20
    assert report.before is report.after is None


def test_progress_is_told_to_a_file_in_lines(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    said = io.StringIO()
    console = Console(file=said, width=120)
    finetune(checkpoint, _groups(), tmp_path / "out", FinetuneConfig(steps=2, **QUICK), console)
    assert "step 2 of about 2: loss" in said.getvalue()
    assert "pairs/s" in said.getvalue()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_the_output_as_it_was(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    out = tmp_path / "out"
    finetune(checkpoint, _groups(), out, FinetuneConfig(steps=1, **QUICK))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(finetune_module, "_save", fail)
    with pytest.raises(error):
        finetune(checkpoint, _groups(), out, FinetuneConfig(steps=2, **QUICK))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    groups = [Group(g.query, g.documents, 1, (1e30,) + (0.0,) * 5) for g in _groups()]
    with pytest.raises(ExportError, match="the loss is inf at step 1; lower"):
        finetune(checkpoint, groups, tmp_path / "out", FinetuneConfig(steps=2, **QUICK))
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_cannot_be_used_are_named_with_the_reason(
    checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(ExportError, match=message):
            finetune(folder, _groups(), tmp_path / "out", FinetuneConfig(steps=1, **QUICK))

    refused(tmp_path / "nowhere", "it has no config.json")
    BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path / "three")
    refused(tmp_path / "three", "a classifier of 3 labels; a reranker's has 1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path / "other", r"no \*.safetensors")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "other", "model_type 'llama'")
    tokenizer.save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text((checkpoint / "config.json").read_text())
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    refused(tmp_path / "broken", "cannot be loaded")
    renamed = {f"model.{name}": tensor for name, tensor in _weights(checkpoint).items()}
    save_file(renamed, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "broken", "lacks 37 parameters of its encoder")
    (tmp_path / "broken" / "config.json").write_text("{")
    refused(tmp_path / "broken", "config.json is not JSON")
    with pytest.raises(ExportError, match="no training group"):
        finetune(checkpoint, [], tmp_path / "out", FinetuneConfig(steps=1, held_out_fraction=0, **QUICK))


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("group_size", 1),
        ("steps", 0),
        ("minutes", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("max_length", 100),
        ("held_out_fraction", 1.0),
        ("seed", -1),
    ],
)
def test_a_knob_out_of_its_range_is_refused_by_name(knob: str, value: Any) -> None:
    with pytest.raises(ExportError, match=f"{knob} is {value}"):
        FinetuneConfig(**{knob: value})


def test_the_loss_is_zero_at_the_teacher_and_blind_to_a_shift_of_either() -> None:
    teacher = torch.tensor([[2.0, 0.5, -1.0]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert group_loss(teacher + 5, teacher, valid, 0.0).item() == pytest.approx(0, abs=1e-10)
    assert group_loss(-teacher, teacher, valid, 0.0).item() > 1


def test_the_loss_without_a_teacher_is_info_nce_and_padding_counts_for_nothing() -> None:
    logits = torch.tensor([[1.0, 0.0, 99.0]])
    teacher, valid = torch.full((1, 3), math.nan), torch.tensor([[True, True, False]])
    assert group_loss(logits, teacher, valid, 0.2).item() == pytest.approx(math.log(1 + math.exp(-1)))
    taught = torch.tensor([[0.0, 0.0, math.nan]])
    expected = 0.25 + 0.2 * math.log(1 + math.exp(-1))
    assert group_loss(logits, taught, valid, 0.2).item() == pytest.approx(expected)


def test_the_gradient_is_finite_where_only_some_groups_have_a_teacher() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0], [math.nan] * 3])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    group_loss(logits, teacher, valid, 0.2).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1, 2] == 0


def test_logits_come_back_in_the_order_of_the_pairs(checkpoint: Path) -> None:
    engine = finetune_module._load(checkpoint, FinetuneConfig(**QUICK))
    pairs = [(f"which thing is {c} ?", "the thing is red . " * (1 + i % 5)) for i, c in enumerate(COLOURS * 3)]
    with torch.no_grad():
        together = finetune_module._logits(engine, pairs)
        alone = torch.cat([finetune_module._logits(engine, [pair]) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_long_query_is_cut_to_its_own_limit_and_a_long_document_to_the_rest(checkpoint: Path) -> None:
    engine = finetune_module._load(checkpoint, FinetuneConfig(**QUICK))
    cut = finetune_module._cut(engine, "red green blue " * 20)
    assert len(engine.tokenizer(cut, add_special_tokens=False)["input_ids"]) == 16
    assert finetune_module._cut(engine, "red") == "red"
    with torch.no_grad():
        assert len(finetune_module._logits(engine, [("red green " * 40, "blue " * 200)])) == 1


def test_the_measures_agree_with_hand_counts() -> None:
    assert ndcg_at_10(np.array([3, 2, 1], np.float32)) == 1
    assert ndcg_at_10(np.array([1, 2, 1], np.float32)) == 1 / math.log2(4)
    assert ndcg_at_10(np.array([0, *range(1, 11)], np.float32)) == 0
    assert pairwise_accuracy(np.array([3, 2, 2], np.float32), (3.0, 2.0, 1.0)) == pytest.approx(2.5 / 3)
    assert pairwise_accuracy(np.array([0, 1], np.float32), (1.0, 0.0)) == 0


def _command() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    return parser


def test_the_finetune_command_trains_on_a_users_file_and_says_how_it_went(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": g.query, "positives": g.documents[:1], "negatives": g.documents[1:]} for g in _groups()]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    arguments = ["finetune", "--checkpoint", str(checkpoint), "--data", str(data), "--output", str(tmp_path / "out")]
    arguments += ["--steps", "2", "--max-length", "32", "--max-query-tokens", "16", "--held-out-fraction", "0.1"]
    options = _command().parse_args(arguments)
    assert options.run(options) == 0
    said = capsys.readouterr().out
    assert "2 steps, 48 pairs" in said
    assert "on 4 held-out groups; so few may be chance, --held-out-fraction holds more out" in said
    assert f"triton-rerank-export export --model {tmp_path / 'out'} " in said.splitlines()[-1]
    assert f"curves: {tmp_path / 'out' / 'finetune.png'}" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()
    arguments[2:3] = ["minilm-l6-demo"]  # a name: built from packages; one of the hub is fetched
    options = _command().parse_args([*arguments, "--steps", "1"])
    assert options.run(options) == 0
    assert "1 steps, 24 pairs" in capsys.readouterr().out
    options = _command().parse_args([*arguments, "--max-length", "9999"])
    with pytest.raises(ExportError, match="max_length is 9999, but minilm-l6-demo takes 512 tokens at most"):
        options.run(options)
    options = _command().parse_args([*arguments[:2], "no-such-model", *arguments[3:]])
    with pytest.raises(ExportError, match="'no-such-model' is neither a known name .* nor a checkpoint folder"):
        options.run(options)


@pytest.mark.parametrize("architecture", [name for name, row in FAMILIES.items() if not (row.causal or row.modules)])
def test_every_family_of_classifiers_that_export_knows_is_trained(architecture: str, tmp_path: Path) -> None:
    """The same list of types as export's, and the files that it reads."""
    folder = write_tiny(architecture, tmp_path / "tiny")
    before = _weights(folder)
    report = finetune(folder, _groups(), tmp_path / "out", FinetuneConfig(steps=2, **QUICK))
    assert report.steps == 2
    after = _weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before if "classifier" in name)
    assert read_facts(tmp_path / "out").family.architecture == architecture


def test_the_curves_are_those_of_the_run_and_measuring_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(steps=20, held_out_fraction=0.1, evaluations=3, **QUICK)
    report = finetune(checkpoint, _groups(), tmp_path / "out", config)
    assert [step for step, _ in report.measured] == [0, 5, 10, 15, 20]
    assert report.measured[0][1] == report.before
    assert report.measured[-1][1] == report.after
    assert [step for step, _ in report.losses] == list(range(1, 21))
    assert np.mean([loss for _, loss in report.losses[-5:]]) < np.mean([loss for _, loss in report.losses[:5]])
    kept = json.loads((tmp_path / "out" / "finetune.json").read_text(encoding="utf-8"))["report"]
    assert kept["losses"] == [list(point) for point in report.losses]
    assert (tmp_path / "out" / CURVES).read_bytes().startswith(b"\x89PNG")
    finetune(checkpoint, _groups(), tmp_path / "without", replace(config, evaluations=0))
    assert all(
        torch.equal(_weights(tmp_path / "without")[name], value) for name, value in _weights(tmp_path / "out").items()
    )


def test_a_long_run_has_means_and_a_run_without_matplotlib_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = finetune_module._Recorder(cast("Any", SimpleNamespace(config=FinetuneConfig())), [], None)
    for step in range(450):
        recorder.step(float(step), step / 450)
    losses = recorder.losses()
    assert losses[:2] == ((3, 1.0), (6, 4.0))
    assert (len(losses), losses[-1][0]) == (150, 450)
    report = FinetuneReport(450, 450, 60.0, None, None, losses)
    assert draw(report, tmp_path / "one.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not draw(report, tmp_path / "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
