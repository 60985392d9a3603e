"""Settings of config.json: what changes a score is applied or refused by name, and nothing else matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import odd_checkpoints as odd
from support.served_checkpoints import (
    check_refused,
    check_served,
    predicted,
    served,
)

from triton_rerank_export.checkpoint.resolve import read_checkpoint


def test_settings_that_change_no_score_change_nothing(bert: Path, tmp_path: Path) -> None:
    """huggingface/transformers#7638, huggingface/transformers#16282: "tuple has no attribute logits", and outputs in
    another order, after a config that asks for more outputs or for tuples."""
    config = {"torchscript": True, "return_dict": False, "chunk_size_feed_forward": 7}
    config |= {"output_hidden_states": True, "output_attentions": True}
    assert served(odd.copy(bert, tmp_path / "config", config=config)) == pytest.approx(predicted(bert), abs=1e-4)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_the_layers_own_activation_is_served(bert: Path, tmp_path: Path, activation: str) -> None:
    """huggingface/text-embeddings-inference#753, deepspeedai/Megatron-DeepSpeed#84: GELU by tanh where the checkpoint
    says by erf, and the other way."""
    check_served(odd.copy(bert, tmp_path / "act", config={"hidden_act": activation}))


def test_code_of_its_own_is_refused_before_the_weights(bert: Path, tmp_path: Path) -> None:
    """vllm-project/vllm#15222, huggingface/text-embeddings-inference#554, michaelfeil/infinity#325: the name of a known
    architecture, and code of its own behind it."""
    own = {"auto_map": {"AutoModelForSequenceClassification": "modeling.Mine"}}
    checkpoint = odd.copy(bert, tmp_path / "own", config=own)
    (checkpoint / "model.safetensors").write_bytes(b"never read")
    check_refused(checkpoint, "auto_map", "modeling.Mine")


def test_one_label_in_any_form_is_a_reranker_and_two_are_none(bert: Path, tmp_path: Path) -> None:
    """huggingface/text-embeddings-inference#159, deepset-ai/haystack#1124, langchain-ai/langchain#22556: which models
    are rerankers: one label, however it is stated."""
    forms: list[dict[str, Any]] = [
        {"id2label": None, "label2id": None, "num_labels": 1},
        {"problem_type": "regression"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.0"}},
    ]
    for number, form in enumerate(forms):
        checkpoint = odd.copy(bert, tmp_path / str(number), config=form)
        assert read_checkpoint(checkpoint, name="m", source="s").activation == "sigmoid"
    two = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    check_refused(odd.copy(bert, tmp_path / "two", config=two), "2 labels", "a reranker has 1")


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("Qwen3ForCausalLM", "a causal LM"),
        ("Qwen2ForCausalLM", "a causal LM"),
        ("T5ForConditionalGeneration", "an encoder-decoder model"),
    ],
)
def test_a_language_model_is_refused_by_name(bert: Path, tmp_path: Path, architecture: str, kind: str) -> None:
    """joonsoome/embed-rerank#16, langchain-ai/langchain-community#331, xorbitsai/inference#4144: rerankers that are
    language models, without a padding token."""
    config = {"architectures": [architecture], "pad_token_id": None}
    check_refused(odd.copy(bert, tmp_path / "lm", config=config), architecture, kind, "supported are")


def test_an_embedding_model_is_refused_by_name(bert: Path, tmp_path: Path) -> None:
    """mem0ai/mem0#4033, huggingface/sentence-transformers#1499: a bi-encoder taken for a cross-encoder scored zeros."""
    config = {"architectures": ["BertModel"]}
    check_refused(odd.copy(bert, tmp_path / "bi", config=config), "BertModel", "an embedding model", "supported are")


@pytest.mark.parametrize(
    "architecture",
    [
        "DebertaForSequenceClassification",
        "XLNetForSequenceClassification",
        "FunnelForSequenceClassification",
        "LongformerForSequenceClassification",
    ],
)
def test_a_family_that_is_not_served_is_refused_by_name(bert: Path, tmp_path: Path, architecture: str) -> None:
    """huggingface/text-embeddings-inference#75, huggingface/text-embeddings-inference#86,
    huggingface/text-embeddings-inference#199, sbryngelson/ANEForge#223, Blaizzy/mlx-embeddings#62: rerankers of other
    families failed far inside. A family that is learnt leaves this list for tests/integration/test_families.py."""
    config = {"architectures": [architecture]}
    check_refused(odd.copy(bert, tmp_path / "family", config=config), architecture, "supported are", "BertForSeq")
