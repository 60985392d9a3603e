"""A tokenizer that is not what would be served, or that has ids without a row in the model, is refused early."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triton_rerank_export.checkpoint.resolve import read_checkpoint
from triton_rerank_export.errors import ExportError

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 439000000\n"


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may break; without weights, so that every refusal here comes before them."""
    folder = Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def xlmr(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["tiny-xlmr"], tmp_path / "tiny-xlmr"))


def edit(path: Path, change: Callable[[dict[str, Any]], object] | None = None, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    if change:
        change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as error:
        read_checkpoint(folder, name="m", source="s")
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "value", "there"),
    [
        (
            "do_lower_case",
            False,
            "is false, but lowercase in tokenizer.json is true, and only tokenizer.json is served",
        ),
        ("strip_accents", False, "is false, but strip_accents in tokenizer.json is null"),
        ("tokenize_chinese_chars", False, "is false, but handle_chinese_chars in tokenizer.json is true"),
    ],
)
def test_a_key_that_overrules_tokenizer_json_is_named(folder: Path, key: str, value: object, there: str) -> None:
    edit(folder / "tokenizer_config.json", lambda content: content.update({key: value}))
    message = refusal(folder)
    assert f"{key} in tokenizer_config.json {there}" in message
    assert "save_pretrained(folder) writes both files alike" in message


def test_a_key_that_is_left_out_means_what_the_class_assumes(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda content: content["normalizer"].update(lowercase=False))
    edit(folder / "tokenizer_config.json", lambda content: content.pop("do_lower_case"))
    assert "do_lower_case in tokenizer_config.json is not stated, which means true, but lowercase in" in refusal(folder)


@pytest.mark.parametrize("side", ["left", "LEFT", None, 3])
def test_another_side_is_refused(folder: Path, side: object) -> None:
    edit(folder / "tokenizer_config.json", truncation_side=side)
    assert f"truncation_side in tokenizer_config.json is {side!r}; texts are cut and filled up on the r" in refusal(
        folder
    )


def test_a_side_that_stands_in_tokenizer_json_only_is_seen(folder: Path) -> None:
    cut = {"direction": "Left", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=cut)
    assert "truncation_side in tokenizer.json is 'Left'" in refusal(folder)


def test_padding_on_the_left_is_refused_since_the_classifier_reads_the_first_token(folder: Path, xlmr: Path) -> None:
    for checkpoint in (folder, xlmr):
        edit(checkpoint / "tokenizer_config.json", padding_side="left")
        assert "padding_side in tokenizer_config.json is 'left'" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused_before_the_weights(folder: Path, name: str) -> None:
    edit(folder / name, auto_map={"AutoModel": "modeling_mine.Model"})
    assert f"auto_map in {name} names code of its own (modeling_mine.Model), which is not run here" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(LFS_POINTER)
    assert f"{name} is a pointer of git-lfs, not the file itself; run `git lfs pull`" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_weights_that_are_a_pointer_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text(LFS_POINTER)
    assert f"{name} is a pointer of git-lfs, not the file itself" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_half_a_tokenizer_file_is_named(folder: Path, share: float) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(content[: int(len(content) * share)])
    assert "tokenizer.json is not whole, or no JSON (" in refusal(folder)


def test_json_that_is_no_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Magic"}}')
    assert "tokenizer.json is no tokenizer file, or not whole; get it anew (" in refusal(folder)


def test_tokens_that_were_added_without_rows_are_refused_with_both_numbers(folder: Path) -> None:
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    tokens = [{"id": size, "content": "[USER]", **flags}, {"id": size + 1, "content": "[URL]", **flags}]
    edit(folder / "tokenizer.json", lambda content: content["added_tokens"].extend(tokens))
    message = refusal(folder)
    assert (
        f"tokenizer.json has the token '[URL]' with id {size + 1}, but vocab_size in config.json is {size}" in message
    )
    assert f"call model.resize_token_embeddings({size + 2})" in message


def test_segments_without_rows_are_refused_with_both_numbers(folder: Path) -> None:
    edit(folder / "config.json", type_vocab_size=1)
    assert "gives a pair the segment id 1, type_vocab_size in config.json is 1" in refusal(folder)


def test_inputs_that_leave_out_segments_are_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert "is ['input_ids', 'attention_mask'], without token_type_ids, which the model reads" in refusal(folder)


@pytest.mark.parametrize("pad", [10**6, 5000])
def test_a_padding_id_without_a_row_is_refused(folder: Path, pad: int) -> None:
    edit(folder / "config.json", pad_token_id=pad)
    assert f"pad_token_id in config.json is {pad}; vocab_size " in refusal(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"max_position_embeddings": 7}, "its longest pair has 7 tokens"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json is 1000000000; a number from 1 was expected"),
        ({"num_hidden_layers": True}, "num_hidden_layers in config.json is True; a number from 1 was expected"),
        ({"num_attention_heads": 0}, "num_attention_heads in config.json is 0; a number from 1 was expected"),
        ({"num_attention_heads": 5}, "hidden_size 32 in config.json is no multiple of num_attention_heads 5"),
        ({"id2label": 5, "num_labels": 2}, "the classifier has 2 labels"),
        ({"num_labels": True, "id2label": None}, "the classifier has True labels"),
        ({"architectures": "BertForSequenceClassificatiom"}, "its architecture is BertForSequenceClassificatiom; supp"),
        ({"model_type": "roberta"}, "model_type in config.json is 'roberta', which is not BertForSequenceClass"),
        ({"model_type": None}, "model_type in config.json is None, which is not BertForSequenceClassification's; it"),
        ({"quantization_config": {"bits": 4}}, "quantization_config in config.json is {'bits': 4}; export the"),
        ({"sentence_transformers": 3}, "sentence_transformers in config.json is 3; an object was expected"),
    ],
)
def test_a_config_that_no_model_has_is_named(folder: Path, change: dict[str, Any], found: str) -> None:
    edit(folder / "config.json", **change)
    assert found in refusal(folder)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json is there, so the weights are an adapter; merge it" in refusal(folder)


@pytest.mark.parametrize("limit", ["512", [], 0, -1, float("nan"), True])
def test_a_limit_that_is_no_number_is_named(folder: Path, limit: object) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=limit)
    assert f"model_max_length in tokenizer_config.json is {limit!r}; a number from 1 was expected" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"vocab_size": 2000}, "config.json states [2000, 32] (vocab_size, hidden_size); config and weights do not"),
        (
            {"max_position_embeddings": 500},
            "the weights hold position_embeddings of [130, 32], config.json states [500",
        ),
        ({"type_vocab_size": 2}, "the weights hold token_type_embeddings of [1, 32], config.json states [2, 32]"),
        ({"num_hidden_layers": 3}, "num_hidden_layers in config.json is 3, the weights hold 2 layers"),
    ],
)
def test_tables_of_another_size_than_config_json_states_are_refused(
    xlmr: Path, change: dict[str, Any], found: str
) -> None:
    edit(xlmr / "config.json", **change)
    assert found in refusal(xlmr)
