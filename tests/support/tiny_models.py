"""Cross-encoders of both families, made in seconds: random weights, words of the parity set."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizerFast,
)

from triton_rerank_export.gate.parity import PARITY_SET

MAX_LENGTH = 128
_SEED = 3  # int8 moves the logits of random weights as well; with these both families keep every best document
VOCABULARY = 900  # pieces without those of the special tokens and of the continuations
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


# How they are exported: with bounded queues, as the tests of overload and deadlines need them
BOUNDED: dict[str, Any] = {"max_queue_size": 128, "queue_timeout_us": 10_000_000}


def write_tiny_bert(folder: Path, *, labels: int = 1) -> Path:
    """BERT type: segment ids change the logit."""
    fast = BertTokenizerFast(tokenizer_object=wordpiece(), model_max_length=MAX_LENGTH)
    config = BertConfig(
        vocab_size=len(fast), max_position_embeddings=MAX_LENGTH, num_labels=labels, initializer_range=0.2, **_SHAPE
    )
    return _write(folder, BertForSequenceClassification, config, fast)


def write_tiny_xlmr(folder: Path, *, labels: int = 1) -> Path:
    """XLM-R type: no segment ids, pad id 1, positions from 2."""
    fast = XLMRobertaTokenizerFast(tokenizer_object=unigram(), model_max_length=MAX_LENGTH)
    config = XLMRobertaConfig(
        vocab_size=len(fast),
        max_position_embeddings=MAX_LENGTH + 2,
        num_labels=labels,
        initializer_range=0.2,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        type_vocab_size=1,
        **_SHAPE,
    )
    return _write(folder, XLMRobertaForSequenceClassification, config, fast)


def write_random_xlmr(folder: Path, *, vocabulary: int, max_position_embeddings: int, **shape: int) -> Path:
    """An XLM-R of any size with random weights; its tokenizer uses the first ids of the vocabulary."""
    fast = XLMRobertaTokenizerFast(tokenizer_object=unigram(), model_max_length=max_position_embeddings - 2)
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=max_position_embeddings,
        num_labels=1,
        initializer_range=0.05,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        type_vocab_size=1,
        **shape,
    )
    return _write(folder, XLMRobertaForSequenceClassification, config, fast)


def write_fine_tuned(source: Path, folder: Path, *, shift: float = 3.0) -> Path:
    """The same model after a training step: every logit is ``shift`` higher, the order is the same."""
    shutil.copytree(source, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    head = model.classifier if hasattr(model.classifier, "bias") else model.classifier.out_proj
    head.bias.data += shift
    model.save_pretrained(folder)
    return folder


def write_other_words(source: Path, folder: Path) -> Path:
    """The same model with other numbers for its words: either half of it makes no sense with the half of the other."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("vocab.txt"))
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    words = [word for word in vocabulary if word not in special]
    numbers = [vocabulary[word] for word in words]
    vocabulary.update(zip(words, [*numbers[5:], *numbers[:5]], strict=True))
    file.write_text(json.dumps(tokenizer))
    return folder


def write_settings(folder: Path, *, transformer: Mapping[str, Any] | None = None, **settings: Any) -> Path:
    """The files that sentence-transformers 5.7 adds to a cross-encoder, as it writes them.

    Args:
        folder: checkpoint.
        transformer: changes to sentence_bert_config.json.
        settings: changes to config_sentence_transformers.json.
    """
    task = {"text": {"method": "forward", "method_output_name": "logits"}}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        ],
        "sentence_bert_config.json": {
            "transformer_task": "sequence-classification",
            "modality_config": task,
            "module_output_name": "scores",
            **(transformer or {}),
        },
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.7.0"},
            "activation_fn": "torch.nn.modules.linear.Identity",
            "default_prompt_name": None,
            "model_type": "CrossEncoder",
            "prompts": {},
            **settings,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def resize_positions(folder: Path, positions: int) -> Path:
    """Give a checkpoint another number of positions, in its weights too."""
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("position_embeddings.weight")]:  # not every family has any
        weights[name] = np.resize(weights[name], (positions, weights[name].shape[1]))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}), encoding="utf-8")
    return folder


def _write(folder: Path, architecture: Any, config: Any, tokenizer: Any) -> Path:
    torch.manual_seed(_SEED)
    architecture(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parity_texts() -> list[str]:
    """Queries and documents of the parity set."""
    entries = [json.loads(line) for line in PARITY_SET.read_text(encoding="utf-8").splitlines()]
    return [text for entry in entries for text in (entry["query"], *entry["documents"])]


def _words(prefix: str) -> list[str]:
    """Characters and frequent words of the parity set. The libraries' own trainers break ties at random."""
    counts = Counter(prefix + word.lower() for text in parity_texts() for word in text.split())
    characters = sorted({character for word in counts for character in word})
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - len(characters)]
    return list(dict.fromkeys([*characters, *frequent]))


def wordpiece_words(special: Iterable[str]) -> list[str]:
    """A vocabulary of BERT's kind, after its special tokens."""
    words = _words("")
    return list(dict.fromkeys([*special, *words, *(f"##{word}" for word in words if len(word) < 4)]))


def unigram_words(special: Iterable[str]) -> list[tuple[str, float]]:
    """A scored vocabulary of SentencePiece's kind, after its special tokens."""
    pieces = dict.fromkeys([*special, *_words("▁")])
    return [(piece, -float(index) / VOCABULARY - 1.0) for index, piece in enumerate(pieces)]


def wordpiece() -> Tokenizer:
    """BERT's kind."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = wordpiece_words(special)
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return tokenizer


def unigram() -> Tokenizer:
    """XLM-R's kind."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram(unigram_words(special), unk_id=special.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(special)
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    return tokenizer
