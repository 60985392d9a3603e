from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import read, refusal
from support.tiny_models import resize_positions, write_tiny_bert
from transformers import AutoConfig, AutoModelForSequenceClassification

from triton_rerank_export.checkpoint.resolve import read_checkpoint, resolve
from triton_rerank_export.errors import ExportError, about
from triton_rerank_export.gate.parity import DisagreementError
from triton_rerank_export.options import ExportOptions


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_from_config(folder: Path, key: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


@pytest.mark.parametrize(
    ("name", "segments", "pad", "max_length"), [("tiny-bert", True, 0, 128), ("tiny-xlmr", False, 1, 128)]
)
def test_the_facts_of_both_families_are_read(
    checkpoints: dict[str, Path], name: str, segments: bool, pad: int, max_length: int
) -> None:
    found = read(checkpoints[name])
    assert (found.token_type_ids, found.pad_token_id, found.max_length) == (segments, pad, max_length)
    assert found.activation == "sigmoid"


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlmr"])
def test_without_a_stated_padding_id_it_is_the_one_that_transformers_takes(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(checkpoints[name], tmp_path / name))
    drop_from_config(folder, "pad_token_id")
    assert read(folder).pad_token_id == AutoConfig.from_pretrained(folder).pad_token_id


def test_a_padding_id_moves_the_positions_that_are_left(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["tiny-xlmr"], tmp_path / "tiny-xlmr"))
    edit_config(folder, pad_token_id=5)
    assert read(folder).max_length == 124  # 130 positions, the first is 6


@pytest.mark.parametrize(("asked", "served"), [(None, 1024), (8, 8), (2000, 2000), (8192, 8192)])
def test_a_long_model_is_served_up_to_1024_unless_told_otherwise(folder: Path, asked: int | None, served: int) -> None:
    resize_positions(folder, 8192)
    (folder / "tokenizer_config.json").unlink()
    assert read(folder, max_length=asked).max_length == served


@pytest.mark.parametrize("asked", [-1, 0, 7, 129, 100_000])
def test_a_length_that_the_model_does_not_take_is_refused(folder: Path, asked: int) -> None:
    assert f"max_length {asked} is out of bounds; this model takes 8 to 128 tokens" in refusal(folder, max_length=asked)


def test_a_tokenizer_may_state_less_than_the_positions(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 100}))
    assert read(folder).max_length == 100
    assert "takes 8 to 100 tokens" in refusal(folder, max_length=101)


def test_several_labels_are_refused(tmp_path: Path) -> None:
    assert "the classifier has 3 labels; a reranker has 1" in refusal(write_tiny_bert(tmp_path / "three", labels=3))


@pytest.mark.parametrize(("stated", "labels"), [({}, 2), ({"num_labels": 5}, 5)])
def test_labels_are_counted_as_transformers_does(folder: Path, stated: dict[str, int], labels: int) -> None:
    drop_from_config(folder, "id2label")
    drop_from_config(folder, "label2id")
    edit_config(folder, **stated)
    assert AutoConfig.from_pretrained(folder).num_labels == labels
    assert f"the classifier has {labels} labels" in refusal(folder)
    edit_config(folder, num_labels=1)
    assert AutoConfig.from_pretrained(folder).num_labels == 1
    read(folder)


@pytest.mark.parametrize(
    ("id2label", "asked", "found"),
    [
        (None, "1", "1 (LABEL_1)"),
        (None, "LABEL_0", "0 (LABEL_0)"),
        ({"0": "off topic", "1": "relevant", "2": "perfect"}, "relevant", "1 (relevant)"),
        ({"0": "1", "1": "0"}, "1", "1 (0)"),  # a number is a row, whatever the rows are called
    ],
)
def test_one_of_several_labels_is_served_if_it_is_asked_for(
    folder: Path, id2label: dict[str, str] | None, asked: str, found: str
) -> None:
    edit_config(folder, id2label=id2label)
    checkpoint = read(folder, label=asked)
    assert (str(checkpoint.one_of), checkpoint.row, checkpoint.activation) == (found, int(found[0]), "identity")


def test_the_only_label_may_be_asked_for(folder: Path) -> None:
    edit_config(folder, id2label={"0": "score"})
    checkpoint = read(folder, label="score")
    assert (checkpoint.one_of, checkpoint.row, checkpoint.activation) == (None, None, "sigmoid")


@pytest.mark.parametrize(
    ("id2label", "asked", "found"),
    [
        ({"0": "no", "1": "yes"}, "2", "--label '2' is not a label of it; there are 0 (no), 1 (yes)"),
        ({"0": "no", "1": "yes"}, "Yes", "--label 'Yes' is not a label of it; there are 0 (no), 1 (yes)"),
        ({"0": "no", "1": "no"}, "no", "--label 'no' is not a label of it; several are called so, of 0 (no), 1 (no)"),
        ({str(row): f"n{row}" for row in range(30)}, "x", "18 (n18), 19 (n19) and 10 more"),
        ({"0": "score"}, "1", "--label '1' is not a label of it; there are 0 (score)"),
        ({"0": "no", "1": "yes"}, None, "be the score: --label with its number or name (0 (no), 1 (yes))"),
    ],
)
def test_a_label_that_is_not_there_is_refused_with_those_that_are(
    folder: Path, id2label: dict[str, str], asked: str | None, found: str
) -> None:
    edit_config(folder, id2label=id2label)
    message = refusal(folder, label=asked)
    assert found in message
    assert "\n" not in message


@pytest.mark.parametrize("stated", [0, True, "two", None])
def test_a_number_of_labels_that_is_none_is_refused(folder: Path, stated: object) -> None:
    drop_from_config(folder, "id2label")
    edit_config(folder, num_labels=stated)
    assert f"the classifier has {stated!r} labels (num_labels in config.json); 1 or more" in refusal(folder)


def test_a_checkpoint_without_tokenizer_json_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json; save the model to a folder, make one there with AutoTokenizer" in refusal(folder)


@pytest.mark.parametrize(
    ("architectures", "found"),
    [
        (["Qwen3ForCausalLM"], "Qwen3ForCausalLM, a causal LM"),
        (["GPT2LMHeadModel"], "GPT2LMHeadModel, a causal LM"),
        (["BertModel"], "BertModel, an embedding model"),
        (["BertForMaskedLM"], "BertForMaskedLM, a masked LM, which has no classifier yet"),
        (["XLNetForSequenceClassification"], "XLNetForSequenceClassification, a classifier of another"),
        (["BertForTokenClassification"], "BertForTokenClassification; supported"),
        (["BertModel", "BertForSequenceClassification"], "BertModel, BertForSequenceClassification, a classifier of"),
        ([], "not stated in config.json; supported"),
        (None, "not stated in config.json; supported"),
    ],
)
def test_a_model_of_another_kind_is_named(folder: Path, architectures: list[str] | None, found: str) -> None:
    edit_config(folder, architectures=architectures)
    message = refusal(folder)
    assert f"{folder}: its architecture is {found}" in message
    assert "supported are cross-encoders with one label: BertForSequenceClassification, XLMRobertaFor" in message


@pytest.mark.parametrize(
    ("architecture", "kind", "sentence"),
    [
        (
            "JinaForRanking",
            "a listwise reranker",
            "It scores all documents in one sequence",
        ),
        ("LayerWiseMiniCPMForCausalLM", "a layerwise reranker", "Which layer gives its score is chosen at run time"),
        ("CostWiseGemmaForCausalLM", "a lightweight reranker", "It merges tokens between its layers"),
        ("JinaVLForRanking", "a reranker of images", "Only text is read here"),
        ("Qwen3VLForConditionalGeneration", "a reranker of images", "Only text is read here"),
        ("HF_ColBERT", "a late-interaction model", "It makes a vector for each token instead of a score for a pair"),
        ("T5ForConditionalGeneration", "an encoder-decoder model", "Its score is that of a word which it would write"),
        ("Qwen3ForCausalLM", "a causal LM", "Which tokens mean yes and no, and the prompt that it was trained with"),
        ("LlamaForSequenceClassification", "a classifier of another architecture, on a", "Its pairs need the prompt"),
        ("BertForMaskedLM", "a masked LM", "triton-rerank-export finetune trains one"),
    ],
)
@pytest.mark.parametrize("own_code", [False, True])
def test_each_kind_that_is_no_cross_encoder_has_its_own_sentence(
    folder: Path, architecture: str, kind: str, sentence: str, own_code: bool
) -> None:
    """Before the weights: they are not there. Code of its own is named where nothing else is known."""
    (folder / "model.safetensors").unlink()
    code = {"AutoModel": "modeling_own.OwnModel"} if own_code else None
    edit_config(folder, architectures=[architecture], auto_map=code)
    message = refusal(folder)
    if own_code and "auto_map" in message:
        assert "auto_map in config.json names code of its own (modeling_own.OwnModel), which is not run here" in message
        assert message.endswith("or use ms-marco-minilm-l6-v2 (English) or bge-reranker-v2-m3 (multilingual)")
        return
    assert f"its architecture is {architecture}, {kind}" in message
    assert f"ForSequenceClassification. {sentence}" in message
    assert "\n" not in message


def test_a_decoder_without_a_padding_id_is_refused(folder: Path) -> None:
    edit_config(folder, architectures=["Qwen3ForSequenceClassification"], pad_token_id=None)
    assert "pad_token_id in config.json is missing, and Qwen3ForSequenceClassification reads" in refusal(folder)


def test_two_labels_are_refused_with_the_way_to_one(tmp_path: Path) -> None:
    message = refusal(write_tiny_bert(tmp_path / "two", labels=2))
    assert (
        "the classifier has 2 labels; a reranker has 1 (num_labels in config.json). Of two, relevant and not" in message
    )


def test_positions_that_are_not_absolute_are_refused(folder: Path) -> None:
    edit_config(folder, position_embedding_type="relative_key")
    assert "its position_embedding_type is relative_key; supported is absolute" in refusal(folder)


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "max_position_embeddings"])
@pytest.mark.parametrize("value", [None, "32", -1])
def test_a_number_that_is_none_is_refused(folder: Path, key: str, value: object) -> None:
    edit_config(folder, **{key: value})
    assert f"{key} in config.json is {value!r}; a number from" in refusal(folder)


def test_pickled_weights_are_refused_unless_asked_for(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "its weights are pytorch_model.bin, a pickle, which can run code when it is read; convert it" in message
    assert "or pass --allow-pickle if you trust its authors" in message
    assert read(folder, allow_pickle=True).allow_pickle


@pytest.mark.parametrize(
    ("files", "found"),
    [((), "and no other weights"), (("model.gguf", "model.fp16.safetensors"), "but model.fp16.safetensors, ")],
)
def test_other_files_are_no_weights(folder: Path, files: tuple[str, ...], found: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).touch()
    for allow_pickle in (False, True):
        assert f"no model.safetensors, {found}" in refusal(folder, allow_pickle=allow_pickle)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_weights_that_are_cut_off_are_found(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    message = refusal(folder)
    assert "model.safetensors is not whole (" in message
    assert message.endswith(f"delete {path} and get it anew")


def test_weights_in_parts_must_all_be_there(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    read(folder)
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    last.unlink()
    assert f"{last.name} is missing, though the index names it" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json is not an index of weights (weight_map); delete" in refusal(folder)


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
    assert read(folder).activation == activation
    edit_config(folder, sentence_transformers=None, sbert_ce_default_activation_function=stated)
    assert read(folder).activation == activation


def test_an_activation_that_is_not_known_is_refused(folder: Path) -> None:
    edit_config(folder, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    assert "supported are Identity and Sigmoid" in refusal(folder)


def test_a_name_that_triton_or_a_shell_would_trip_over_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give another with --name"):
        read_checkpoint(folder, name="my model", source="s")
    with pytest.raises(ExportError, match=re.escape("model name '-base': it must match")):
        resolve("acme/-base", tmp_path)  # before anything is fetched


def test_a_local_folder_has_no_revision_and_its_own_name(folder: Path, tmp_path: Path) -> None:
    found = resolve(str(folder), tmp_path, ExportOptions(max_length=64))
    assert (found.name, found.source, found.revision) == ("tiny-bert", "local folder tiny-bert", "")
    assert (found.licence, found.max_length) == ("", 64)
    assert resolve(str(folder), tmp_path, ExportOptions(name="mine")).name == "mine"


def test_the_demo_model_is_built_here(tmp_path: Path) -> None:
    found = resolve("minilm-l6-demo", tmp_path)
    assert found.folder.is_relative_to(tmp_path)
    assert (found.name, found.revision, found.licence, found.max_length) == ("minilm-l6-demo", "", "Apache-2.0", 512)


@pytest.mark.parametrize("model", ["no-such-model", "a/b/c", "/no/such/folder", "acme/x@", "acme/x@a b", "acme/"])
def test_neither_a_name_nor_a_folder_nor_an_id_lists_what_would_be(tmp_path: Path, model: str) -> None:
    with pytest.raises(ExportError) as error:
        resolve(model, tmp_path)
    message = str(error.value)
    assert message.startswith(f"model {model!r} is neither a known name (bce-reranker-base_v1, ")
    assert message.endswith("nor a checkpoint folder nor a Hugging Face id (org/name or org/name@revision)")


def test_an_error_says_once_what_it_is_about_and_the_inner_block_says_it() -> None:
    with pytest.raises(ExportError) as error, about("the outer"), about("the inner"):
        raise ExportError("it is wrong")
    assert str(error.value) == "the inner: it is wrong"
    with pytest.raises(DisagreementError) as missed, about("the model"):
        raise DisagreementError("it is not alike", ["tau is 0"])
    assert (str(missed.value), missed.value.misses) == ("the model: it is not alike", ("tau is 0",))
