"""Checkpoints as people save them: served as sentence-transformers scores them, or refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import odd_checkpoints as odd
from support.served_checkpoints import (
    check_refused,
    check_served,
    check_served_or_refused,
    load_logits,
    predicted,
    served,
)

from triton_rerank_export.checkpoint.resolve import read_checkpoint
from triton_rerank_export.errors import ExportError

# --- what sentence-transformers saved --------------------------------------------------------------------------------


def test_an_activation_in_files_of_sentence_transformers_counts(bert: Path, tmp_path: Path) -> None:
    """huggingface/sentence-transformers#3554, huggingface/sentence-transformers#4006,
    huggingface/sentence-transformers#1262: from 5.4 on the activation stands in a file of its own, and thresholds on
    raw scores met probabilities."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(bert), device="cpu", local_files_only=True, activation_fn=torch.nn.Identity())
    model.save_pretrained(str(tmp_path / "saved"))
    scores = check_served(tmp_path / "saved")
    assert scores == pytest.approx(load_logits(bert), abs=1e-4)


def test_a_saved_prompt_stands_before_every_query(bert: Path, tmp_path: Path) -> None:
    """huggingface/sentence-transformers#3406: a reranker that was trained with a prompt was asked without it."""
    from sentence_transformers import CrossEncoder

    prompts = {"query": "find passages: ", "other": "say it again: "}
    model = CrossEncoder(str(bert), device="cpu", local_files_only=True, prompts=prompts, default_prompt_name="query")
    model.save_pretrained(str(tmp_path / "saved"))
    scores = check_served(tmp_path / "saved")
    assert scores != pytest.approx(predicted(bert), abs=1e-3)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_of_no_models_class_is_served(bert: Path, tmp_path: Path) -> None:
    """huggingface/transformers#2910, huggingface/transformers#9933, huggingface/transformers#26287,
    FlagOpen/FlagEmbedding#1593, FlagOpen/FlagEmbedding#1208: a generic fast tokenizer put no special tokens around."""
    scores = check_served(odd.generic_tokenizer(bert, tmp_path / "generic"))
    assert scores == pytest.approx(predicted(bert), abs=1e-4)


def test_tokenizer_files_of_transformers_5_are_read(bert: Path, tmp_path: Path) -> None:
    """huggingface/transformers#47553, ml-explore/mlx-lm#683, unslothai/unsloth#8444, ml-explore/mlx-lm#661,
    huggingface/transformers#45566: transformers 5 writes the class TokenizersBackend, and extra_special_tokens as a
    list; the one before knew neither."""
    five = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[MASK]"]}
    checkpoint = odd.copy(bert, tmp_path / "five", tokenizer=five)
    assert served(checkpoint) == pytest.approx(predicted(bert), abs=1e-4)


def test_a_roberta_with_the_tokenizer_of_bert_gets_no_segments(bert: Path, tmp_path: Path) -> None:
    """Ethan-yt/guwenbert#11, huggingface/transformers#1538, huggingface/setfit#338, KLUE-benchmark/KLUE#33: segment 1
    was looked up in a table of one row."""
    checkpoint = odd.roberta(tmp_path / "roberta", tokenizer_of=bert)
    without = [1 / (1 + math.exp(-logit)) for logit in load_logits(checkpoint, segments=False)]
    assert served(checkpoint) == pytest.approx(without, abs=1e-4)


def test_a_padding_id_that_body_and_tokenizer_disagree_on_does_no_harm(xlmr: Path, tmp_path: Path) -> None:
    """langchain-ai/langchain#21812, huggingface/sentence-transformers#975, huggingface/sentence-transformers#1011,
    microsoft/unilm#313: a published multilingual cross-encoder: BERT's body, XLM-R's tokenizer, padding 0 and 1."""
    checkpoint = odd.bert_with_another_padding_id(xlmr, tmp_path / "mixed")
    check_served_or_refused(checkpoint, "pad_token_id")


def test_tokens_without_a_row_in_the_model_are_refused(bert: Path, tmp_path: Path) -> None:
    """huggingface/transformers#12763, huggingface/sentence-transformers#744, huggingface/tokenizers#1609: tokens were
    added, the embeddings not resized, and the first text with one of them failed."""
    from transformers import AutoTokenizer

    checkpoint = odd.copy(bert, tmp_path / "added")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    size = len(tokenizer)
    tokenizer.add_tokens(["[USER]", "[URL]"])
    tokenizer.save_pretrained(checkpoint)
    check_refused(checkpoint, str(size), str(size + 1), "resize_token_embeddings")


@pytest.mark.parametrize("side", ["left", "Left"])
def test_texts_that_are_cut_on_the_left_are_refused(bert: Path, tmp_path: Path, side: str) -> None:
    """vllm-project/vllm#12050, vllm-project/vllm#47772: truncation_side of the checkpoint was not obeyed."""
    check_refused(
        odd.copy(bert, tmp_path / "left", tokenizer={"truncation_side": side}),
        "truncation_side",
        "tokenizer_config.json",
    )


@pytest.mark.parametrize(
    ("key", "value"), [("do_lower_case", False), ("strip_accents", False), ("tokenize_chinese_chars", False)]
)
def test_a_key_that_contradicts_tokenizer_json_is_named(bert: Path, tmp_path: Path, key: str, value: bool) -> None:
    """huggingface/transformers#10650, vllm-project/vllm#11184, vllm-project/vllm#11815: tokenizer_config.json says
    other than tokenizer.json, and which one counts depends on the loader."""
    check_refused(odd.copy(bert, tmp_path / "cased", tokenizer={key: value}), key, "tokenizer.json")


def test_a_limit_that_is_a_string_is_named(bert: Path, tmp_path: Path) -> None:
    """huggingface/lighteval#138: model_max_length was a string, and a comparison with it a TypeError."""
    check_refused(
        odd.copy(bert, tmp_path / "limit", tokenizer={"model_max_length": "128"}), "model_max_length", "'128'"
    )


@pytest.mark.parametrize("stated", [1e30, None])
def test_a_limit_beyond_the_positions_is_not_believed(xlmr: Path, tmp_path: Path, stated: float | None) -> None:
    """huggingface/sentence-transformers#772, huggingface/sentence-transformers#3302, vllm-project/vllm#19201:
    model_max_length of 1e30 or none, 514 positions, of which two are never used."""
    checkpoint = odd.copy(xlmr, tmp_path / "limit", tokenizer={"model_max_length": stated})
    assert read_checkpoint(checkpoint, name="m", source="s").max_length == 128


def test_padding_and_truncation_inside_tokenizer_json_are_ignored(bert: Path, tmp_path: Path) -> None:
    """qdrant/fastembed#703, spiceai/spiceai#13415, deepjavalibrary/djl#2741: the file's own fixed padding and cut
    were applied to every text."""
    checkpoint = odd.copy(bert, tmp_path / "fixed")
    padding: dict[str, Any] = {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    cut = {"max_length": 16, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    odd.edit(checkpoint / "tokenizer.json", padding=padding, truncation=cut)
    assert served(checkpoint) == pytest.approx(predicted(bert), abs=1e-4)


def test_a_roberta_with_bytes_and_two_separators_is_served(tmp_path: Path) -> None:
    """huggingface/sentence-transformers#1722, ggml-org/llama.cpp#9510: one separator where RoBERTa wants two."""
    check_served(odd.roberta(tmp_path / "roberta"))


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_in_parts_and_of_half_precision_are_served(bert: Path, tmp_path: Path) -> None:
    """huggingface/sentence-transformers#3913, huggingface/optimum#1736: parts with an index, another dtype, and files
    that an earlier save left."""
    checkpoint = odd.in_parts(bert, tmp_path / "parts", torch.bfloat16)
    assert served(checkpoint) == pytest.approx(predicted(bert), abs=0.02)


def test_names_of_old_checkpoints_are_read(bert: Path, tmp_path: Path) -> None:
    """own: gamma and beta for the layer norm, and a buffer of position ids among the weights."""

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "LayerNorm" in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            weights[old] = weights.pop(name)
        weights["bert.embeddings.position_ids"] = torch.arange(128)[None]

    checkpoint = odd.edit_weights(odd.copy(bert, tmp_path / "old"), rename)
    assert served(checkpoint) == pytest.approx(predicted(bert), abs=1e-4)


def test_weights_without_metadata_are_read(bert: Path, tmp_path: Path) -> None:
    """safetensors/safetensors#549, ml-explore/mlx#743: a file that was saved again had no format in its header."""
    checkpoint = odd.edit_weights(odd.copy(bert, tmp_path / "bare"), lambda _: None, metadata={})
    assert load_logits(checkpoint) == load_logits(bert)
    read_checkpoint(checkpoint, name="m", source="s")


def test_weights_with_nan_are_refused(bert: Path, tmp_path: Path) -> None:
    """FlagOpen/FlagEmbedding#702, mixedbread-ai/mxbai-rerank#1: a fine-tuned reranker gave NaN for everything."""

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["classifier.weight"][0, 0] = float("nan")

    checkpoint = odd.edit_weights(odd.copy(bert, tmp_path / "nan"), spoil)
    with pytest.raises(ExportError, match="nan"):
        served(checkpoint)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_refused_with_the_way_to_merge_it(bert: Path, tmp_path: Path, beside: bool) -> None:
    """huggingface/peft#1381, huggingface/peft#309, FlagOpen/FlagEmbedding#662: an adapter beside the weights was
    applied by one library and ignored by another; alone it was no checkpoint."""
    checkpoint = odd.copy(bert, tmp_path / "adapter")
    (checkpoint / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "b"}))
    if not beside:
        (checkpoint / "config.json").unlink()
        (checkpoint / "model.safetensors").unlink()
    check_refused(checkpoint, "adapter_config.json", "merge_and_unload")


def test_quantised_weights_are_refused(bert: Path, tmp_path: Path) -> None:
    """bitsandbytes-foundation/bitsandbytes#768, huggingface/optimum#1914: an export of 8-bit weights failed inside."""
    for quantised in ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "gptq", "bits": 4}):
        checkpoint = odd.copy(
            bert, tmp_path / str(quantised["quant_method"]), config={"quantization_config": quantised}
        )
        check_refused(checkpoint, "quantization_config")


def test_a_pointer_of_git_lfs_is_named(bert: Path, tmp_path: Path) -> None:
    """huggingface/transformers#27923, codefuse-ai/MFTCoder#20, microsoft/OmniParser#34: cloned without git-lfs."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 439000000\n"
    for name in ("tokenizer.json", "model.safetensors"):
        checkpoint = odd.copy(bert, tmp_path / name)
        (checkpoint / name).write_text(pointer)
        check_refused(checkpoint, name, "git-lfs", "git lfs pull")


def test_a_snapshot_of_links_is_exported_without_a_network(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """openvinotoolkit/model_server#2924: a snapshot in the hub's cache, all links, was not read as a model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert served(odd.as_a_hub_cache(bert, tmp_path / "cache")) == pytest.approx(predicted(bert), abs=1e-4)
