"""Checkpoints with one thing wrong in their small files, the same for the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FILES = (
    *("config.json", "tokenizer_config.json", "tokenizer.json"),
    *("config_sentence_transformers.json", "sentence_bert_config.json", "modules.json", "special_tokens_map.json"),
)
_WEIGHTS = (5, 5, 5, 1, 1, 1, 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 513, 10**9, 10**30, 0.5, 1e30, float("nan"), float("inf")),
    *("", "x", "left", "[SEP]", "</s>", "\ud800", "ä" * 500, "relu", [], ["x"], [[]], {}, {"x": 1}, {"0": None}),
)
_KEYS = {  # that the libraries read, whether a checkpoint has them or not
    "config.json": (
        *("auto_map", "quantization_config", "is_decoder", "add_cross_attention", "chunk_size_feed_forward"),
        *("output_attentions", "output_hidden_states", "return_dict", "torch_dtype", "dtype", "pruned_heads"),
        *("tie_word_embeddings", "problem_type", "num_labels", "id2label", "label2id", "tokenizer_class"),
        *("attn_implementation", "torchscript", "sentence_transformers", "sbert_ce_default_activation_function"),
        *("use_cache", "classifier_dropout", "hidden_act", "layer_norm_eps", "position_embedding_type"),
    ),
    "tokenizer_config.json": (
        *(
            "auto_map",
            "truncation_side",
            "padding_side",
            "split_special_tokens",
            "model_input_names",
            "add_prefix_space",
        ),
        *("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder", "chat_template", "use_fast"),
        *("from_slow", "tokenizer_file", "name_or_path", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
        *("tokenizer_class", "backend", "is_local", "processor_class", "sep_token", "stride", "max_length"),
    ),
}


def mutate(folder: Path, seed: int) -> str:
    """Change one of the small files of a checkpoint.

    Returns:
        What was changed, for a message.
    """
    chance = random.Random(seed)
    there = [(name, weight) for name, weight in zip(FILES, _WEIGHTS, strict=True) if (folder / name).is_file()]
    (name,) = chance.choices([name for name, _ in there], [weight for _, weight in there])
    path = folder / name
    if chance.random() < 0.06:
        return f"{name}: {_damage(path, chance)}"
    content = json.loads(path.read_text(encoding="utf-8"))
    changes = [_change(content, name, chance) for _ in range(chance.choice((1, 1, 1, 2)))]
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"{name}: {'; '.join(changes)}"


def _damage(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    if chance.random() < 0.5:
        path.write_bytes(content[: chance.randrange(len(content))])
        return "cut off"
    for _ in range(chance.randrange(1, 20)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)
    return "bytes overwritten"


def _change(content: Any, name: str, chance: random.Random) -> str:
    if name in _KEYS and chance.random() < 0.35:
        key, value = chance.choice(_KEYS[name]), chance.choice(_VALUES)
        content[key] = value
        return f"{key} = {value!r:.60}"
    where: list[str] = []
    parent, key = _place(content, chance, where)
    if key is None:
        return "nothing to change"
    if chance.random() < 0.25:
        del parent[key]
        return f"{'.'.join(where)} left out"
    parent[key] = _other(parent[key], chance)
    return f"{'.'.join(where)} = {parent[key]!r:.60}"


def _place(content: Any, chance: random.Random, where: list[str]) -> tuple[Any, Any]:
    """Walks down at random: each level is as likely as the others, however many entries it has."""
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    if not keys:
        return content, None
    key = chance.choice(keys)
    where.append(str(key)[:30])
    below = content[key]
    if isinstance(below, dict | list) and below and chance.random() < 0.8:
        return _place(below, chance, where)
    return content, key


def _other(value: Any, chance: random.Random) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, 2, 100))
    if isinstance(value, bool) and chance.random() < 0.5:
        return not value
    if isinstance(value, str) and chance.random() < 0.3:
        return value + chance.choice(("x", "Fast", " ", "s"))
    return chance.choice(_VALUES)
