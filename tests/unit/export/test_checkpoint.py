from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_tiny_bert

from triton_rerank_export.checkpoint import read_checkpoint, resolve
from triton_rerank_export.errors import ExportError


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as error:
        read_checkpoint(folder, name="m", source="s")
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "segments", "pad", "max_length"), [("tiny-bert", True, 0, 128), ("tiny-xlmr", False, 1, 128)]
)
def test_the_facts_of_both_families_are_read(
    checkpoints: dict[str, Path], name: str, segments: bool, pad: int, max_length: int
) -> None:
    found = read_checkpoint(checkpoints[name], name=name, source="s")
    assert (found.token_type_ids, found.pad_token_id, found.max_length) == (segments, pad, max_length)
    assert found.activation == "sigmoid"


def test_several_labels_are_refused(tmp_path: Path) -> None:
    assert "the classifier has 3 labels; a reranker has 1" in refusal(write_tiny_bert(tmp_path / "three", labels=3))


def test_a_checkpoint_without_tokenizer_json_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json; make one with AutoTokenizer" in refusal(folder)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "BertModel", "MPNetForSequenceClassification"])
def test_other_architectures_are_refused_by_name(folder: Path, architecture: str) -> None:
    edit_config(folder, architectures=[architecture])
    assert f"its architecture is {architecture}; supported are BertForSequenceClassification" in refusal(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no *.safetensors, but pytorch_model.bin; a pickle can run code" in refusal(folder)


def test_a_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    assert "not a Hugging Face checkpoint folder" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("stated", "activation"),
    [
        ("torch.nn.modules.linear.Identity", "identity"),
        ("torch.nn.modules.activation.Sigmoid", "sigmoid"),
    ],
)
def test_the_activation_is_the_one_that_sentence_transformers_wrote(folder: Path, stated: str, activation: str) -> None:
    edit_config(folder, sentence_transformers={"activation_fn": stated})
    assert read_checkpoint(folder, name="m", source="s").activation == activation
    edit_config(folder, sentence_transformers=None, sbert_ce_default_activation_function=stated)
    assert read_checkpoint(folder, name="m", source="s").activation == activation


def test_an_activation_that_is_not_known_is_refused(folder: Path) -> None:
    edit_config(folder, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    assert "supported are Identity and Sigmoid" in refusal(folder)


def test_a_name_that_triton_or_a_shell_would_trip_over_is_refused(folder: Path) -> None:
    with pytest.raises(ExportError, match="give another with --name"):
        read_checkpoint(folder, name="my model", source="s")


def test_neither_a_name_nor_a_folder_lists_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="neither a known name .*minilm-l6-demo.* nor a checkpoint folder"):
        resolve("no-such-model", tmp_path)
