"""A tiny cross-encoder of every family that export knows, made in seconds: random weights, words of the parity set."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from support.tiny_models import MAX_LENGTH, unigram_words, wordpiece_words
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from triton_rerank_export.checkpoint.causal import PROMPTS
from triton_rerank_export.checkpoint.families import BY_CLASS, FAMILIES
from triton_rerank_export.gate.parity import PARITY_SET, read_queries

_SEED = 3
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_QWEN: dict[str, Any] = {
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
_QWEN_TOKENIZER = {
    "pad_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "padding_side": "left",
    "model_max_length": 256,
}
_AFTER_PADDING = {"max_position_embeddings": MAX_LENGTH + 2, "type_vocab_size": 1}


def wordpiece(cls: str, sep: str, *special: str, doubled: bool = False) -> Tokenizer:
    """BERT's kind; ``special`` are the tokens with the first ids, the unknown one is ``[UNK]``."""
    words = wordpiece_words(special)
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finished(tokenizer, cls, sep, special, doubled=doubled)


def unigram(cls: str, sep: str, *special: str, unknown: str, doubled: bool = False) -> Tokenizer:
    """SentencePiece's kind."""
    tokenizer = Tokenizer(models.Unigram(unigram_words(special), unk_id=special.index(unknown)))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _finished(tokenizer, cls, sep, special, doubled=doubled)


def _finished(tokenizer: Tokenizer, cls: str, sep: str, special: tuple[str, ...], *, doubled: bool) -> Tokenizer:
    """With the special tokens around a pair: RoBERTa doubles the separator and has one segment."""
    tokenizer.add_special_tokens(list(special))
    pair = f"{cls} $A {sep} {sep} $B {sep}" if doubled else f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return tokenizer


def _bert_words() -> Tokenizer:
    return wordpiece("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _xlmr_words() -> Tokenizer:
    return unigram("<s>", "</s>", "<s>", "<pad>", "</s>", "<unk>", "<mask>", unknown="<unk>", doubled=True)


def _roberta_bytes() -> Tokenizer:
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def _albert_words() -> Tokenizer:
    return unigram("[CLS]", "[SEP]", "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", unknown="<unk>")


def _deberta_words() -> Tokenizer:
    return unigram("[CLS]", "[SEP]", "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", unknown="[UNK]")


def _mpnet_words() -> Tokenizer:
    return wordpiece("<s>", "</s>", "<s>", "<pad>", "</s>", "[UNK]", "<mask>", doubled=True)


_QWEN_WORDS = (  # the pattern of Qwen2 and Qwen3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def _prompt_texts() -> list[str]:
    """Of the parity set, and those of the prompts often."""
    prompts = [text for asked in PROMPTS.values() for text in asked.prompt.parameters.values()]
    texts = [text for entry in read_queries(PARITY_SET) for text in (f"{entry.query}?\n", *entry.documents)]
    return [*texts, *[*prompts, "yes no Yes No 1 0"] * 50]


@functools.cache
def _qwen_file() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.ByteLevel()
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.train_from_iterator(
        _prompt_texts(),
        trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return str(tokenizer.to_str())


def qwen_words() -> Tokenizer:
    """Qwen's kind: no special tokens around a pair, and words that may end with the line break behind them."""
    return Tokenizer.from_str(_qwen_file())


_GEMMA_SPECIAL, _GEMMA_SPACES = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], ["\n", "\n\n", "▁▁", "▁▁▁"]


@functools.cache
def _gemma_file() -> str:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    texts = [re.sub(r"\n|<bos>", "", text.replace(" ", "▁")) for text in _prompt_texts()]
    words.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1200, show_progress=False))
    learned = json.loads(words.to_str())["model"]
    first = [*_GEMMA_SPECIAL, *_GEMMA_SPACES, *map("<0x{:02X}>".format, range(256))]
    pieces = [*first, *sorted(learned["vocab"], key=learned["vocab"].get)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "▁"), ("▁▁", "▁"), *map(tuple, learned["merges"])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in _GEMMA_SPECIAL])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in _GEMMA_SPACES])
    return str(tokenizer.to_str())


def gemma_words() -> Tokenizer:
    """Gemma's kind: the text is one word, spaces are letters, line breaks are tokens that no text merges with."""
    return Tokenizer.from_str(_gemma_file())


@dataclass(frozen=True)
class Tiny:
    """How a family's tiny model is made: names of transformers' classes, its words, what its config says besides."""

    config: str
    tokenizer: str
    words: Callable[[], Tokenizer]
    more: dict[str, Any] = field(default_factory=dict)
    of_tokenizer: dict[str, Any] = field(default_factory=dict)


TINY = {
    "BertForSequenceClassification": Tiny("BertConfig", "BertTokenizerFast", _bert_words),
    "XLMRobertaForSequenceClassification": Tiny(
        "XLMRobertaConfig", "XLMRobertaTokenizerFast", _xlmr_words, {**_AFTER_PADDING, "pad_token_id": 1}
    ),
    "RobertaForSequenceClassification": Tiny(
        "RobertaConfig", "RobertaTokenizerFast", _roberta_bytes, {**_AFTER_PADDING, "pad_token_id": 1}
    ),
    "CamembertForSequenceClassification": Tiny(
        "CamembertConfig", "XLMRobertaTokenizerFast", _xlmr_words, {**_AFTER_PADDING, "pad_token_id": 1}
    ),
    "ElectraForSequenceClassification": Tiny(
        "ElectraConfig", "ElectraTokenizerFast", _bert_words, {"embedding_size": 16}
    ),
    "DistilBertForSequenceClassification": Tiny(
        "DistilBertConfig",
        "DistilBertTokenizerFast",
        _bert_words,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "seq_classif_dropout": 0.0},
    ),
    "AlbertForSequenceClassification": Tiny(
        "AlbertConfig",
        "AlbertTokenizerFast",
        _albert_words,
        {"embedding_size": 16, "bos_token_id": 2, "eos_token_id": 3},
    ),
    "MPNetForSequenceClassification": Tiny(
        "MPNetConfig",
        "MPNetTokenizerFast",
        _mpnet_words,
        {"max_position_embeddings": MAX_LENGTH + 2, "pad_token_id": 1},
    ),
    "DebertaV2ForSequenceClassification": Tiny(  # as mxbai-rerank-v1; buckets few enough that texts pass them
        "DebertaV2Config",
        "DebertaV2TokenizerFast",
        _deberta_words,
        {
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 32,
            "pooler_dropout": 0,
        },
    ),
    "ModernBertForSequenceClassification": Tiny(  # as gte; a window that texts pass, and layers of both kinds
        "ModernBertConfig",
        "PreTrainedTokenizerFast",
        _bert_words,
        {
            "classifier_pooling": "mean",
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "pad_token_id": 0,
            **dict.fromkeys(("bos_token_id", "cls_token_id"), 2),
            **dict.fromkeys(("eos_token_id", "sep_token_id"), 3),
        },
        {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "model_input_names": ["input_ids", "attention_mask"],
        },
    ),
    "Qwen3ForSequenceClassification": Tiny(  # heads wider than the layer divided by them, as Qwen3 has them
        "Qwen3Config",
        "PreTrainedTokenizerFast",
        qwen_words,
        {**_QWEN, "head_dim": 16},
        _QWEN_TOKENIZER,
    ),
    "Qwen2ForSequenceClassification": Tiny(
        "Qwen2Config", "PreTrainedTokenizerFast", qwen_words, _QWEN, _QWEN_TOKENIZER
    ),
    "GemmaForSequenceClassification": Tiny(  # as bge-reranker-v2-gemma: one head of keys, GELU's first name
        "GemmaConfig",
        "GemmaTokenizerFast",
        gemma_words,
        {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256, "hidden_act": "gelu"},
        {"model_max_length": 256},
    ),
}
CAUSAL = {family.causal: name for name, family in FAMILIES.items() if family.causal}

TINY["ModernBertModel"] = TINY["ModernBertForSequenceClassification"]


def write_tiny(architecture: str, folder: Path, *, labels: int = 1, **changes: Any) -> Path:
    """Write a family's tiny checkpoint: two layers, 32 wide; ``changes`` go into its config.

    A causal language model is made like the classifier of its family; its folder's name tells its prompt, or nothing.
    """
    tiny = TINY[CAUSAL.get(architecture, architecture)]
    tokenizer = getattr(transformers, tiny.tokenizer)(
        tokenizer_object=tiny.words(), **{"model_max_length": MAX_LENGTH, **tiny.of_tokenizer}
    )
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "num_labels": labels,
        "initializer_range": 0.2,
        **({} if "dim" in tiny.more else _SHAPE),
        **tiny.more,
        **changes,
    }
    torch.manual_seed(_SEED)
    model = getattr(transformers, architecture)(getattr(transformers, tiny.config)(**settings))
    _move_norms(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return write_head(folder, width=settings["hidden_size"]) if BY_CLASS[architecture].modules else folder


def _move_norms(model: Any) -> None:
    """Weights of RMS norms are all alike when they are made; ones that were mixed up would not be seen."""
    with torch.no_grad():
        for norm in model.modules():
            if type(norm).__name__.endswith("RMSNorm"):
                norm.weight.add_(torch.randn_like(norm.weight) * 0.1)


def write_head(
    folder: Path, *, width: int = 32, pooling: str = "cls", activation: Callable[[], nn.Module] = nn.GELU
) -> Path:
    """Put the modules of ettin-reranker behind a model, as sentence-transformers saves them; Identity at the end."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    model = CrossEncoder(
        modules=[
            Transformer(str(folder), transformer_task="feature-extraction"),
            Pooling(width, pooling),
            Dense(width, 24, bias=False, activation_function=activation()),
            LayerNorm(24),
            Dense(24, 1, activation_function=nn.Identity(), module_output_name="scores"),
        ],
        activation_fn=nn.Identity(),
        device="cpu",
    )
    torch.manual_seed(_SEED)
    with torch.no_grad():
        for module in list(model)[2:]:  # a LayerNorm's own weights are 1, its bias 0
            for weight in module.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(str(folder))
    return folder


_ZERANK_TEMPLATE = """
{%- set query, document = (messages | selectattr("role", "in", ["query", "document"]) | map(attribute="content")) -%}
{{- "<|im_start|>system\\n" + query + "<|im_end|>\\n<|im_start|>user\\n" + document + "<|im_end|>\\n" -}}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""  # what the pinned commit's makes of a pair
_LOGITS = {"method": "forward", "method_output_name": "logits"}


def write_zerank_2(folder: Path) -> Path:
    """A tiny zerank-2 with the files of its pinned commit: Qwen3 with LogitScore, which reads Yes alone."""
    write_tiny("Qwen3ForCausalLM", folder, max_position_embeddings=40960)
    kinds = {"": "base.modules.transformer.Transformer", "1_LogitScore": "cross_encoder.modules.logit_score.LogitScore"}
    for name, content in {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
            for index, (path, kind) in enumerate(kinds.items())
        ],
        "1_LogitScore/config.json": {"true_token_id": qwen_words().token_to_id("Yes"), "false_token_id": None},
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.4.0"},
            "activation_fn": "torch.nn.modules.linear.Identity",
            "default_prompt_name": None,
            "model_type": "CrossEncoder",
            "prompts": {},
        },
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"text": _LOGITS, "message": {**_LOGITS, "format": "flat"}},
            "module_output_name": "causal_logits",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
        "tokenizer_config.json": json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        | {"model_max_length": 131072},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_ZERANK_TEMPLATE, encoding="utf-8")
    return folder


SAVED = {"zerank-2": write_zerank_2}  # what the catalogue names and sentence-transformers saved with LogitScore
